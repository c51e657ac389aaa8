"""Holds the dashboards against Grafana's own types: `make dashboards-check`. Needs npm and its registry.

Each dashboard becomes a literal in a TypeScript file, so that unknown and misspelt fields are errors too; the compiler
does the rest. Options and field settings are held against those of their kind of panel.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from observability.dashboards import DASHBOARDS, dashboard

PACKAGES = ("@grafana/schema@12.4.11", "typescript@5.9.3")
HEAD = """
import type { Dashboard } from '{raw}/dashboard/x/types.gen';
import type { Options as Timeseries, FieldConfig } from '{raw}/composable/timeseries/panelcfg/x/types.gen';
import type { Options as Stat } from '{raw}/composable/stat/panelcfg/x/types.gen';
import type { Options as Heatmap } from '{raw}/composable/heatmap/panelcfg/x/types.gen';
// JSON has strings and numbers where TypeScript has enums.
type Plain<T> = T extends boolean ? T : T extends string ? `${T}` : T extends number ? number
  : T extends (infer E)[] ? Plain<E>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type Some<T> = T extends object ? { [K in keyof T]?: Some<T[K]> } : T;
"""
KINDS = {"timeseries": "Timeseries", "stat": "Stat", "heatmap": "Heatmap"}


def source() -> str:
    """The TypeScript file."""
    lines = [HEAD.replace("{raw}", "@grafana/schema/dist/types/raw")]
    for uid, (title, panels) in DASHBOARDS.items():
        made = dashboard(uid, title, panels)
        lines.append(f"export const {uid}: Plain<Dashboard> = {json.dumps(made, indent=1)};")
        for number, panel in enumerate(made["panels"]):
            kind = KINDS[panel["type"]]
            options = json.dumps(panel["options"], indent=1)
            lines.append(f"export const {uid}{number}: Some<Plain<{kind}>> = {options};")
            if custom := panel["fieldConfig"]["defaults"].get("custom"):
                lines.append(f"export const {uid}{number}f: Some<Plain<FieldConfig>> = {json.dumps(custom)};")
    return "\n".join(lines)


def main() -> int:
    """Install the types, compile, say what is wrong."""
    with tempfile.TemporaryDirectory(prefix="loomweight-") as name:
        folder = Path(name)
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *PACKAGES], cwd=folder, check=True)
        (folder / "dashboards.ts").write_text(source())
        options = ["--strict", "--noEmit", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "node10"]
        compiled = subprocess.run(["npx", "tsc", *options, "dashboards.ts"], cwd=folder, check=False)
        print(f"{len(DASHBOARDS)} dashboards {'do not ' if compiled.returncode else ''}fit Grafana's schema.")
        return compiled.returncode


if __name__ == "__main__":
    sys.exit(main())
