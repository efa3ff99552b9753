"""Plugins: hook specifications, the records that hooks return, and the registry that collects them."""

from __future__ import annotations

from nequip_core.plugins.records import API as API
