"""What schemathesis must leave out when it fuzzes the server (SCHEMATHESIS_HOOKS names this file)."""

from __future__ import annotations

import schemathesis


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Drops forms with an empty list or object: a form cannot say such a value, it is sent without that field."""
    if case.media_type != "multipart/form-data" or not isinstance(case.body, dict):
        return True
    return not any(value in ([], {}) for value in case.body.values())
