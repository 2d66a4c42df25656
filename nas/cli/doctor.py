"""`nas doctor`: what this machine offers."""

from __future__ import annotations

import json

from nas.cli.app import Json, app, errors, say


@app.command(short_help="Say what this machine offers: versions, devices, data, extras.")
def doctor(
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Say what this machine offers: versions, devices, data sets and tables that can be loaded, extras."""
    with errors():
        from nas.doctor import examine

        findings = examine()
        if as_json:
            say(json.dumps(findings))
        else:
            say("\n".join(f"{name:19} {value}" for name, value in findings.items()))
