"""`nas spaces`: the search spaces that come with the engine."""

from __future__ import annotations

import json
from typing import Any

from nas.cli.app import Json, app, errors, say
from nas.text import counted


@app.command()
def spaces(as_json: Json = False) -> None:  # noqa: FBT002
    """List the search spaces that come with the engine."""
    with errors():
        from nas.space.loading import about, bundled, load

        rows: list[dict[str, Any]] = []
        for name in bundled():
            space = load(name)
            settings = {k: v for k, v in space.settings.items() if k not in ("classes", "in_channels")}
            rows.append(
                {
                    "name": name,
                    "about": about(name),
                    "decisions": len(space.decisions),
                    "size": str(space.size),
                    "settings": settings,
                }
            )
        if as_json:
            say(json.dumps(rows))
            return
        for row in rows:
            pairs = "  ".join(f"{name}={value}" for name, value in row["settings"].items())
            say(f"{row['name']:12}  {counted(row['decisions'], 'decision')}, {row['size']} architectures")
            say(f"{'':12}  {row['about']}\n{'':12}  settings: {pairs}")
        say(
            "\nChange a setting by --set space_settings.NAME=VALUE. Your own space: --space FILE.py:FUNCTION."
        )
