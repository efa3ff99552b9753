"""Configuration: the typed keys, how files and overrides become one `Config`, and how that becomes objects."""
