"""What a search shows: on the console, as a sheet, in TensorBoard."""
