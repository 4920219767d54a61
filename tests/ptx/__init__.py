"""A machine that executes PTX on the CPU, with an adversarial schedule; see README.md in this folder."""
