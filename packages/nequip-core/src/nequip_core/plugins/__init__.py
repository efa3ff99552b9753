"""Plugins: hook specifications, the records that hooks return, and the registry that collects them."""
