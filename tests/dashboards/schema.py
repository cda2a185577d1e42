#!/usr/bin/env python3
"""Holds the dashboards against the types that Grafana publishes (@grafana/schema), by the TypeScript compiler.

What a type does not know, or knows with other values, is an error. A setting may be absent: Grafana has a default for each.

usage: schema.py FOLDER      with the modules of schema/package.json
"""

import json
import pathlib
import subprocess
import sys

import live

PANELS = {"timeseries": "TimeSeries", "stat": "Stat", "bargauge": "BarGauge", "table": "Table"}
HEAD = """
import type { Dashboard, FieldConfig, GraphFieldConfig, Panel, RowPanel, TableFieldOptions } from "@grafana/schema";
%s

// JSON has the values of enums, not their names.
type Plain<T> = T extends string ? `${T}` : T extends number ? (`${T}` extends `${infer N extends number}` ? N : T)
    : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]?: Plain<T[K]> } : T;
type Of<Options, Custom> = Plain<Omit<Panel, "options" | "fieldConfig" | "targets"> & { options: Options }> & {
    fieldConfig: { defaults: Plain<Omit<FieldConfig, "custom">> & { custom?: Plain<Custom> }, overrides: Override<Custom>[] };
    targets: { refId: string; datasource: object; expr: string; legendFormat: string; instant: boolean; range: boolean;
        format?: "table" }[];
};
type Flat<T, At extends string> = { [K in keyof T & string]-?: { id: `${At}${K}`; value: Plain<T[K]> } }[keyof T & string];
type Override<Custom> = { matcher: { id: "byName"; options: string };
    properties: (Flat<Omit<FieldConfig, "custom">, ""> | Flat<Custom, "custom.">)[] };
type Custom = { timeseries: GraphFieldConfig; stat: {}; bargauge: {}; table: TableFieldOptions };
"""


def text(dashboards: dict) -> str:
    raw = "@grafana/schema/dist/esm/raw/composable"
    lines = [HEAD % "\n".join(f'import type {{ Options as {name} }} from "{raw}/{kind}/panelcfg/x/{name}PanelCfg_types.gen.d.ts";'
                              for kind, name in PANELS.items())]
    for name, dashboard in dashboards.items():
        head = {key: value for key, value in dashboard.items() if key != "panels"}
        lines.append(f"export const {name}: Plain<Omit<Dashboard, 'panels'>> = {json.dumps(head)};")
        for panel in dashboard["panels"]:
            kind = panel["type"]
            of = "Plain<RowPanel>" if kind == "row" else f'Of<{PANELS[kind]}, Custom["{kind}"]>'
            lines.append(f"// {panel['title']}\nexport const {name}_{panel['id']}: {of} & {{ type: '{kind}' }} = {json.dumps(panel)};")
    return "\n".join(lines) + "\n"


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    dashboards = {name: json.loads((live.ROOT / f"deploy/grafana/{name}.json").read_text()) for name in live.NAMES}
    (folder / "types.ts").write_text(text(dashboards))
    ran = subprocess.run(
        ["node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution",
         "bundler", "--allowImportingTsExtensions", "--target", "es2022", "types.ts"],
        cwd=folder, capture_output=True, text=True, timeout=300)
    if ran.returncode:
        sys.exit(ran.stdout)
    print(f"dashboards: {sum(len(it['panels']) for it in dashboards.values())} panels are as Grafana's types have them")


if __name__ == "__main__":
    main()
