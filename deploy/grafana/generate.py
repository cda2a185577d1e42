#!/usr/bin/env python3
"""Writes the Grafana dashboards from source/*.toml; `--check` fails where a file differs from what it would write."""

import json
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ["overview", "security", "performance"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, UNKNOWN = 24, "#565a63"


def target(ref: int, query: dict, panel: dict) -> dict:
    instant = panel["kind"] != "timeseries" and not panel.get("trend")
    made = {
        "refId": chr(ord("A") + ref),
        "datasource": SOURCE,
        "expr": query["expr"],
        "legendFormat": query.get("legend", ""),
        "instant": instant,
        "range": not instant,
    }
    return made | {"format": "table"} if panel["kind"] == "table" else made


def thresholds(panel: dict) -> dict:
    """`steps` are pairs of a value and the colour from there on; below the first it is `base`."""
    base = {"timeseries": "transparent", "stat": "green" if "steps" in panel else "text"}.get(panel["kind"], "green")
    steps = [{"color": panel.get("base", base), "value": None}]
    return {"mode": "absolute", "steps": steps + [{"color": c, "value": v} for v, c in panel.get("steps", [])]}


def options(panel: dict) -> dict:
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel["kind"] == "stat":
        # Colour only where it judges: a number without thresholds is as plain as its curve (`trend`).
        return {"reduceOptions": reduce, "colorMode": "background" if "steps" in panel else "none",
                "graphMode": "area" if panel.get("trend") else "none", "textMode": "value", "justifyMode": "center",
                "orientation": "auto"}
    if panel["kind"] == "bargauge":
        return {"reduceOptions": reduce, "displayMode": "basic", "orientation": "horizontal", "showUnfilled": True,
                "valueMode": "text", "namePlacement": "left", "sizing": "manual", "minVizHeight": 16, "maxVizHeight": 32,
                "minVizWidth": 8, "text": {"titleSize": 12, "valueSize": 16}}
    if panel["kind"] == "table":
        return {"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": panel["sort"], "desc": False}]}
    return {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"}}


def override(name: str, *properties: tuple) -> dict:
    return {"matcher": {"id": "byName", "options": name}, "properties": [{"id": id, "value": value} for id, value in properties]}


def overrides(panel: dict) -> list:
    """`colors`: of series whose names are known; `cells`: of a table's column, by value; `units`, `widths`: of a table's columns."""
    made = [override(name, ("color", {"mode": "fixed", "fixedColor": color})) for name, color in panel.get("colors", {}).items()]
    for column, cells in panel.get("cells", {}).items():
        values = {value: {"text": value, "color": color, "index": i} for i, (value, color) in enumerate(cells.items())}
        made.append(override(column, ("mappings", [{"type": "value", "options": values}]),
                             ("custom.cellOptions", {"type": "color-background", "mode": "basic"})))
    made += [override(column, ("unit", unit), ("decimals", 0)) for column, unit in panel.get("units", {}).items()]
    return made + [override(column, ("custom.width", width)) for column, width in panel.get("widths", {}).items()]


def field(panel: dict) -> dict:
    defaults = {
        "unit": panel["unit"],
        "min": 0,
        "noValue": panel.get("empty", "no data"),
        "color": {"mode": "palette-classic" if panel["kind"] == "timeseries" else "thresholds"},
        "thresholds": thresholds(panel),
        "mappings": [],
    }
    if panel["kind"] == "stat":
        # Nothing known is not well: grey, whatever colour 0 would have.
        defaults["mappings"] = [{"type": "special", "options": {"match": "null+nan", "result": {
            "text": defaults["noValue"], "color": UNKNOWN, "index": 0}}}]
    for key in ("max", "decimals"):
        if key in panel:
            defaults[key] = panel[key]
    if panel["kind"] == "timeseries":
        lines = "area" if panel.get("steps") else "off"
        defaults["custom"] = {
            "drawStyle": "line", "lineWidth": 2, "showPoints": "never", "spanNulls": False,
            "fillOpacity": 30 if panel.get("stack") else 8,
            "stacking": {"mode": "normal" if panel.get("stack") else "none", "group": "A"},
            "thresholdsStyle": {"mode": lines},
        }
        if "soft_max" in panel:
            defaults["custom"]["axisSoftMax"] = panel["soft_max"]
    return {"defaults": defaults, "overrides": overrides(panel)}


def build_panel(number: int, panel: dict, place: dict) -> dict:
    made = {
        "id": number,
        "type": panel["kind"],
        "title": panel["title"],
        "description": panel["description"],
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [target(i, query, panel) for i, query in enumerate(panel["queries"])],
        "fieldConfig": field(panel),
        "options": options(panel),
        "links": [{"title": f"Runbook: {page}", "url": f"${{docs}}/runbooks/{page}.md", "targetBlank": True}
                  for page in panel.get("runbooks", [])],
    }
    if panel["kind"] == "table":
        made["transformations"] = [{"id": "organize", "options": {
            "excludeByName": {"Time": True}, "renameByName": panel["columns"],
            "indexByName": {name: i for i, name in enumerate(panel["columns"])}}}]
    return made


def variable(name: str, label: str, query: str) -> dict:
    """All is `.*`, which also matches where there is no such label: so it works without Kubernetes."""
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE,
        "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
        "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}, "options": [], "regex": "", "hide": 0,
    }


def variables(instances: bool) -> list:
    # Nobody's address: each installation has its own; the Helm chart puts in metrics.dashboards.docs.
    docs = "https://set-me.example.com/docs"
    made = [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1,
         "current": {}, "options": [], "regex": "", "multi": False, "includeAll": False, "hide": 0},
        variable("namespace", "Namespace", "label_values(p8broker_build_info, namespace)"),
    ]
    if instances:
        made.append(variable("instance", "Replica",
                             'label_values(p8broker_build_info{namespace=~"$namespace"}, instance)'))
    made.append({"name": "docs", "label": "Docs", "type": "textbox", "query": docs, "hide": 0,
                 "current": {"text": docs, "value": docs}, "options": [{"text": docs, "value": docs, "selected": True}]})
    return made


def build(name: str, source: dict) -> dict:
    panels, top, number = [], 0, 0
    for row in source["row"]:
        number += 1
        panels.append({"id": number, "type": "row", "title": row["title"], "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}})
        top, left, begin, height = top + 1, 0, 0, row["height"]
        for panel in row["panel"]:
            number += 1
            if left + panel["width"] > WIDTH:
                top, left = top + height, begin
            # One that is two lines high, and stands first, has the others beside it.
            lines = 2 if panel.get("tall") else 1
            panels.append(build_panel(number, panel, {"x": left, "y": top, "w": panel["width"], "h": height * lines}))
            left += panel["width"]
            begin = left if lines == 2 else begin
        top += height
    return {
        "uid": f"p8broker-{name}", "title": source["title"], "description": source["description"],
        "tags": ["p8broker"], "schemaVersion": 38, "version": 1, "editable": True, "graphTooltip": 1,
        "refresh": "30s", "timezone": "browser", "time": {"from": "now-1h", "to": "now"}, "timepicker": {},
        "annotations": {"list": []}, "templating": {"list": variables(source.get("instances", False))},
        "links": [{"type": "dashboards", "title": "p8broker", "tags": ["p8broker"], "asDropdown": False,
                   "includeVars": True, "keepTime": True, "targetBlank": False, "icon": "external link",
                   "tooltip": "", "url": ""}],
        "panels": panels,
    }


def main() -> int:
    wrong = 0
    for name in NAMES:
        source = tomllib.loads((HERE / "source" / f"{name}.toml").read_text())
        text = json.dumps(build(name, source), indent=2, ensure_ascii=False) + "\n"
        path = HERE / f"{name}.json"
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path.name} is not what its source makes: run `make dashboards`", file=sys.stderr)
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
