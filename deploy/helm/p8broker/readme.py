#!/usr/bin/env python3
"""Writes README.md of the chart from Chart.yaml and the comments of values.yaml; `--check` fails where it differs."""

import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
HEAD = """# p8broker

{description}

Chart {version}, for Kubernetes 1.30 and later; Helm 3 and 4. Made by `make helm-sync` from `values.yaml`: don't edit it.

```sh
helm install p8broker deploy/helm/p8broker --namespace p8broker --create-namespace --values my-values.yaml
```

What must be there before, unsealing, upgrades and disasters: [Kubernetes](../../../docs/kubernetes.md). `ci/` has values that work, from the
least to everything; `values.schema.json` refuses names that there are not.

| value | default | what |
| --- | --- | --- |
"""


def rows(text: str) -> list[str]:
    out, at, said = [], [], []
    for line in text.splitlines():
        if comment := re.match(r"^ *# (-- )?(.*)$", line):
            said = [comment[2]] if comment[1] else said + [comment[2]] if said else []
            continue
        found = re.match(r"^( *)([A-Za-z]+):(.*)$", line)
        if not found:
            said = []
            continue
        depth, default = len(found[1]) // 2, found[3].strip()
        at = at[:depth] + [found[2]]
        if said:
            what = " ".join(said).replace("|", "\\|")
            out.append(f"| `{'.'.join(at)}` | `{default or '{}'}` | {what} |")
        said = []
    return out


def main() -> None:
    chart = (HERE / "Chart.yaml").read_text()
    field = {key: re.search(rf"^{key}: (.*)$", chart, re.M)[1] for key in ("description", "version")}
    page = HEAD.format(**field) + "\n".join(rows((HERE / "values.yaml").read_text())) + "\n"
    readme = HERE / "README.md"
    if "--check" not in sys.argv:
        readme.write_text(page)
    elif not readme.exists() or readme.read_text() != page:
        sys.exit("deploy/helm/p8broker/README.md is not what values.yaml says: make helm-sync")


if __name__ == "__main__":
    main()
