"""Build hook: a plain wheel carries models/ as flowtok/models; an editable install reads models/ where it stands."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedModels(BuildHookInterface):
    """Adds the shipped model folders to standard wheels."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a build; `version` is "standard" or "editable"."""
        if version == "standard":
            build_data["force_include"]["models"] = "flowtok/models"
