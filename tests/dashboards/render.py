#!/usr/bin/env python3
"""Pictures of the dashboards, drawn with Grafana's own components (page/) from what a real Prometheus answers.

Every panel's queries are asked as Grafana asks them: a range for curves, at the end of the time for the rest, each variable at All.

usage: render.py PROMETHEUS RECORD PAGE OUT [NAME...]      RECORD is from record.py, PAGE a folder with page.jsx and its modules;
                                                           writes OUT/NAME.png for each dashboard
"""

import functools
import http.server
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

import live

WIDTH, STEP = 1400, 2
GRID_ROW, HEAD = 38, 96
HERE = pathlib.Path(__file__).resolve().parent


def variables(text: str, dashboard: dict) -> str:
    for it in dashboard["templating"]["list"]:
        if it["type"] == "query":
            text = text.replace(f"${it['name']}", it["allValue"])
    return text


def answers(world: live.World, dashboard: dict, begin: float, end: float) -> dict:
    def ask(target: dict) -> dict:
        expression = variables(target["expr"], dashboard)
        if target["instant"]:
            return live.query(world, "query", query=expression, time=str(end))
        return live.query(world, "query_range", query=expression, start=str(begin), end=str(end), step=str(STEP))

    return {panel["id"]: [ask(target) for target in panel["targets"]] for panel in dashboard["panels"] if "targets" in panel}


class Files(http.server.SimpleHTTPRequestHandler):
    """The page and its modules; and what the page says of itself, in `said`."""

    def __init__(self, said: list[str], *arguments: object, **named: object):
        self.said = said
        super().__init__(*arguments, **named)

    def do_POST(self) -> None:
        self.said.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def photograph(folder: pathlib.Path, page: str, panels: int, height: int, out: pathlib.Path) -> None:
    said: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, said, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
             f"--window-size={WIDTH},{height}", "--virtual-time-budget=20000", f"--screenshot={out}",
             f"http://127.0.0.1:{server.server_address[1]}/{page}"],
            check=True, capture_output=True, timeout=120)
    server.shutdown()
    if said != [f"drawn {panels}"]:
        sys.exit(f"{page}: {panels} panels should be drawn, and the page said {said}")


def build(page: pathlib.Path) -> None:
    # What Grafana's modules import by default from older packages is only found from their CommonJS builds.
    aliases = [f"--alias:@grafana/{name}=./node_modules/@grafana/{name}/dist/cjs/index.cjs" for name in ("data", "schema", "ui")]
    subprocess.run(
        ["node_modules/.bin/esbuild", "page.jsx", "--bundle", "--outfile=page.js", "--format=iife", "--jsx=automatic",
         "--loader:.woff2=dataurl", "--loader:.woff=dataurl", "--loader:.ttf=empty",
         "--define:process.env.NODE_ENV=\"production\"", "--log-level=error", *aliases],
        cwd=page, check=True)


def main() -> None:
    prometheus, record, page, out = map(pathlib.Path, sys.argv[1:5])
    names = sys.argv[5:] or live.NAMES
    times = json.loads((record / "record.json").read_text())
    shutil.copy(HERE / "page/page.jsx", page)
    build(page)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        world = live.World("", str(prometheus), pathlib.Path(folder))
        try:
            live.prometheus(world, record / "tsdb", {})
            dashboards = {name: json.loads((live.ROOT / f"deploy/grafana/{name}.json").read_text()) for name in live.NAMES}
            for name in names:
                dashboard = dashboards[name]
                results = answers(world, dashboard, times["from"], times["to"])
                titles = [it["title"] for it in dashboards.values()]
                picture = {"dashboard": dashboard, "dashboards": titles, "results": results, "step": STEP, "width": WIDTH} | times
                text = json.dumps(picture).replace("<", "\\u003c")
                (page / f"{name}.html").write_text(
                    "<!doctype html><meta charset=utf-8><link rel=stylesheet href=page.css><div id=root></div>"
                    f"<script>window.__grafana_public_path__='node_modules/@grafana/ui/dist/public/';window.PICTURE={text}</script>"
                    "<script src=page.js></script>")
                rows = max(it["gridPos"]["y"] + it["gridPos"]["h"] for it in dashboard["panels"])
                panels = sum(it["type"] != "row" for it in dashboard["panels"])
                photograph(page, f"{name}.html", panels, rows * GRID_ROW + HEAD, (out / f"{name}.png").resolve())
                print(out / f"{name}.png", (out / f"{name}.png").stat().st_size)
        finally:
            world.end()


if __name__ == "__main__":
    main()
