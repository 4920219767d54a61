from pez_fast.config import Progress, SearchConfig as Options, config_from as options_from  # noqa: F401
