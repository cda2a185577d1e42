#!/usr/bin/env python3
"""Installs the chart on a real kube-apiserver with etcd, in a namespace where Pod Security is enforced as restricted.

There is no kubelet and no controller. Where Helm waits for one, this script does what it would do: it makes a pod of every
template, which is where Pod Security decides, and says that a Job or a test has succeeded.

usage: cluster.py ETCD KUBE-APISERVER CRDS CHART HELM...     programs, folders with CRDs and with the chart, each Helm
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from apiserver import Api, ApiServer, lacks  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMESPACE, RELEASE, PATIENCE_S = "tokens", "broker", 120
LEVEL = "pod-security.kubernetes.io"
KINDS = {
    "Certificate", "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Job", "NetworkPolicy", "Pod", "PodDisruptionBudget",
    "PodMonitor", "PrometheusRule", "Service", "ServiceAccount", "ServiceMonitor", "StatefulSet",
}


class Failed(Exception):
    """What makes it senseless to go on."""


def name(one: dict) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def parsed(text: str) -> list[dict]:
    return [one for one in yaml.safe_load_all(text) if one]


class Controllers:
    """What a cluster would do with the chart's objects, as far as Helm waits for it or Pod Security looks at it."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.wrong: list[str] = []
        self.admitted: set[str] = set()
        self.pods = 0
        self.done: set[tuple[str, int]] = set()

    def step(self) -> None:
        for version, kind in ("apps/v1", "Deployment"), ("apps/v1", "StatefulSet"), ("batch/v1", "Job"), ("v1", "Pod"):
            known = {"apiVersion": version, "kind": kind}
            for one in self.api.get(self.api.path_of(known, NAMESPACE))["items"]:
                (self.run if kind == "Pod" else self.work)(one | known)

    def work(self, one: dict) -> None:
        """Makes the pod of a template, once for each state of it; a Job then succeeds."""
        state = (one["metadata"]["uid"], one["metadata"].get("generation", 1))
        if state in self.done or one["metadata"].get("deletionTimestamp"):
            return
        self.done.add(state)
        for claim in one["spec"].get("volumeClaimTemplates", []):
            claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": claim["spec"],
                     "metadata": {"name": f"{claim['metadata']['name']}-{one['metadata']['name']}-0"}}
            self.take(self.api.create(claim, NAMESPACE, dry=True), f"{name(one)}: its {name(claim)}")
        answer = self.api.create(pod_of(one), NAMESPACE)
        if self.take(answer, f"{name(one)}: its pod"):
            self.admitted.add(name(one))
            self.pods += 1
            self.api.delete(self.api.path_of(answer.body, NAMESPACE, named=True))
        if one["kind"] == "Job":
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            condition = {"status": "True", "reason": "CompletionsReached", "message": "said so by a test", "lastTransitionTime": now}
            status = {"startTime": now, "completionTime": now, "succeeded": 1}
            path = self.api.path_of(one, NAMESPACE, named=True) + "/status"
            # The first condition must be there before the second may be; in 1.30 it must not be there.
            for kinds in ("SuccessCriteriaMet", "Complete"), ("Complete",):
                answer = self.api.patch(path, {"status": status | {"conditions": [condition | {"type": kind} for kind in kinds]}})
                if answer.status < 300:
                    break
            self.take(answer, f"{name(one)}: its status")

    def run(self, pod: dict) -> None:
        """A pod that is a hook succeeds; others are this script's own and already gone."""
        hook = "helm.sh/hook" in pod["metadata"].get("annotations", {})
        if hook and pod["status"].get("phase") != "Succeeded":
            self.admitted.add(name(pod))
            self.pods += 1
            path = self.api.path_of(pod, NAMESPACE, named=True) + "/status"
            self.take(self.api.patch(path, {"status": {"phase": "Succeeded"}}), f"{name(pod)}: its status")

    def take(self, answer, what: str) -> bool:
        if answer.status >= 300:
            self.wrong.append(f"{what} is refused: {answer.body.get('message')}")
        self.wrong += [f"{what}: the API server warns: {warning}" for warning in answer.warnings]
        return answer.status < 300


def pod_of(one: dict) -> dict:
    """The pod that a controller would make."""
    template, own = one["spec"]["template"], one["metadata"]["name"]
    metadata = {"labels": dict(template["metadata"].get("labels", {})), "annotations": template["metadata"].get("annotations", {})}
    spec = dict(template["spec"])
    match one["kind"]:
        case "Deployment":
            metadata["generateName"] = f"{own}-5d4f8c7b9-"
            metadata["labels"]["pod-template-hash"] = "5d4f8c7b9"
        case "StatefulSet":
            metadata["name"] = f"{own}-0"
            metadata["labels"] |= {"statefulset.kubernetes.io/pod-name": f"{own}-0", "apps.kubernetes.io/pod-index": "0"}
            spec["hostname"], spec["subdomain"] = f"{own}-0", one["spec"].get("serviceName", "")
            claims = [it["metadata"]["name"] for it in one["spec"].get("volumeClaimTemplates", [])]
            spec["volumes"] = spec.get("volumes", []) + [
                {"name": it, "persistentVolumeClaim": {"claimName": f"{it}-{own}-0"}} for it in claims]
        case _:
            metadata["generateName"] = f"{own}-"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


class Helm:
    """One Helm and the release that it makes. Every command must say nothing on standard error: that is where warnings go."""

    def __init__(self, program: str, folder: pathlib.Path, kubeconfig: pathlib.Path, controllers: Controllers) -> None:
        self.program, self.controllers = program, controllers
        home = folder / "home"
        home.mkdir(exist_ok=True)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(kubeconfig)}
        self.version = self.out("version", "--template", "{{.Version}}")

    def ran(self, *arguments: str) -> tuple[int, str, str]:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen([self.program, *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=self.env)
            try:
                deadline = time.monotonic() + PATIENCE_S
                while process.poll() is None and time.monotonic() < deadline:
                    self.controllers.step()
                    time.sleep(0.05)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
            # What it made last has its pods, too, before anything is changed again.
            self.controllers.step()
            out.seek(0)
            err.seek(0)
            return process.returncode, out.read(), err.read()

    def out(self, *arguments: str) -> str:
        code, out, err = self.ran(*arguments)
        if code or err.strip():
            raise Failed(f"helm {' '.join(arguments)}: exit code {code}\n{(err or out).strip()}")
        return out

    def release(self, command: str, *arguments: str) -> str:
        return self.out(*command.split(), RELEASE, "--namespace", NAMESPACE, *arguments)

    def manifest(self) -> list[dict]:
        return parsed(self.release("get manifest"))

    def hooks(self) -> list[dict]:
        return parsed(self.release("get hooks"))


class Test:
    def __init__(self, api: Api, chart: pathlib.Path, folder: pathlib.Path) -> None:
        self.api, self.chart, self.folder = api, chart, folder
        self.controllers = Controllers(api)
        self.kinds: set[str] = set()
        self.wrong: list[str] = []

    def there(self, what: str, objects: list[dict]) -> list[str]:
        """What of these objects is not in the cluster as rendered."""
        out = []
        for one in objects:
            answer = self.api.ask("GET", self.api.path_of(one, NAMESPACE, named=True))
            if answer.status != 200:
                out.append(f"{what}: {name(one)} is not there")
            else:
                out += [f"{what}: {name(one)}: {it}" for it in lacks(one, answer.body)]
        return out

    def gone(self, what: str, objects: list[dict]) -> list[str]:
        paths = sorted({self.api.path_of(one, NAMESPACE, named=True) for one in objects})
        return [f"{what}: {path} is still there" for path in paths if self.api.ask("GET", path).status != 404]

    def strictly(self, what: str, objects: list[dict]) -> list[str]:
        """Server-side apply without effect, where an unknown field or a doubled one is an error."""
        out = []
        for one in objects:
            answer = self.api.apply(one, NAMESPACE)
            if answer.status >= 300:
                out.append(f"{what}: {name(one)} is refused: {answer.body.get('message')}")
            out += [f"{what}: {name(one)}: the API server warns: {warning}" for warning in answer.warnings]
        return out

    def life(self, values: pathlib.Path, first: Helm, then: Helm, old: pathlib.Path | None = None) -> None:
        """Install, test, upgrade, roll back, uninstall; `old` is an earlier chart to be installed first."""
        what = f"{values.name.removesuffix('-values.yaml')}, helm {first.version}"
        what += f", then {then.version}" if then is not first else ""
        what += f", from {old.parent.name}" if old else ""
        try:
            objects, hooks = self.steps(what, values, first, then, old)
        except Failed as failed:
            raise Failed("\n".join([*self.wrong, *self.controllers.wrong, f"{what}: {failed}"])) from None
        if self.wrong:
            raise Failed("\n".join(self.wrong))
        print(f"{what}: {objects} objects, {hooks} hooks: passed", flush=True)

    def steps(self, what: str, values: pathlib.Path, first: Helm, then: Helm, old: pathlib.Path | None) -> tuple[int, int]:
        before = self.api.everything(NAMESPACE)
        self.controllers.admitted.clear()
        if old:
            first.release("install", str(self.old_chart(old)))
        else:
            first.release("install", str(self.chart), "--values", str(values))
        one, hooks = first.manifest(), first.hooks()
        self.wrong += self.there(what, one) + ([] if old else self.strictly(what, one + hooks))
        if not old and any(hook["kind"] == "Pod" for hook in hooks):
            first.release("test")

        changed = ["--set", "podLabels.round=two,drain.preStopSeconds=7,image.digest=,image.tag=next"]
        then.release("upgrade", str(self.chart), "--values", str(values), *changed)
        two = then.manifest()
        names = {name(it) for it in two}
        hooks += [it for it in then.hooks() if name(it) not in {name(hook) for hook in hooks}]
        self.wrong += self.there(f"{what}, upgraded", two)
        self.wrong += self.gone(f"{what}, upgraded", [it for it in one if name(it) not in names])
        if not self.there("", one):
            self.wrong.append(f"{what}: the upgrade changed nothing, or this test can't see it")

        then.release("rollback", "1")
        back = {name(it) for it in one}
        self.wrong += self.there(f"{what}, rolled back", one)
        self.wrong += self.gone(f"{what}, rolled back", [it for it in two if name(it) not in back])
        then.release("uninstall")
        self.wrong += self.gone(f"{what}, uninstalled", one + two)

        # A hook outlives its release; that is Helm's way. What else is left would be a fault.
        for hook in hooks:
            self.api.delete(self.api.path_of(hook, NAMESPACE, named=True))
        self.wrong += [f"{what}, uninstalled: {it} is left" for it in sorted(self.api.everything(NAMESPACE) - before)]
        for it in one + two + hooks:
            self.kinds.add(it["kind"])
            if it["kind"] in ("Deployment", "StatefulSet", "Job", "Pod") and name(it) not in self.controllers.admitted:
                if not (it["kind"] == "Pod" and old):
                    self.wrong.append(f"{what}: no pod of {name(it)} was admitted")
        self.wrong += [f"{what}: {it}" for it in self.controllers.wrong]
        return len(one), len(hooks)

    def old_chart(self, rendered: pathlib.Path) -> pathlib.Path:
        """A chart that renders what an earlier one rendered."""
        folder = self.folder / f"{rendered.parent.name}-{rendered.stem}"
        (folder / "templates").mkdir(parents=True, exist_ok=True)
        (folder / "Chart.yaml").write_text(f"apiVersion: v2\nname: p8broker\nversion: {rendered.parent.name}\n")
        (folder / "templates" / "all.yaml").write_text('{{ .Files.Get "all.yaml" }}\n')
        shutil.copy(rendered, folder / "all.yaml")
        return folder

    def worse(self, helm: Helm, values: pathlib.Path) -> None:
        """The chart with its pods made worse: the API server must warn through Helm, and refuse the pods."""
        chart = self.folder / "worse"
        shutil.rmtree(chart, ignore_errors=True)
        shutil.copytree(self.chart, chart)
        helpers = chart / "templates" / "_helpers.tpl"
        text = helpers.read_text()
        helpers.write_text(text.replace("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"))
        self.controllers.admitted.clear()
        code, _, err = helm.ran("install", RELEASE, str(chart), "--namespace", NAMESPACE, "--values", str(values), "--no-hooks")
        found, self.controllers.wrong = self.controllers.wrong, []
        what = f"worse pods, helm {helm.version}"
        if code or "would violate PodSecurity" not in err:
            raise Failed(f"{what}: no warning reaches its user: exit code {code}, {err}")
        if self.controllers.admitted or not any('violates PodSecurity "restricted' in it for it in found):
            raise Failed(f"{what}: not refused: {found}, {self.controllers.admitted}")
        helm.release("uninstall")

    def unknown(self) -> None:
        """A field that there is not must be refused by the strict look, or that sees nothing."""
        one = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "one"}, "spec": {"maxUnavailable": 1}}
        if self.strictly("", [one]) or not self.strictly("", [one | {"spec": {"maxUnavailable": 1, "maxAvailable": 1}}]):
            raise Failed("a field that there is not was taken")


def run(server: ApiServer, crds: pathlib.Path, chart: pathlib.Path, programs: list[str], folder: pathlib.Path) -> None:
    api = server.api
    for file in sorted(crds.glob("*.yaml")):
        api.define(yaml.safe_load(file.read_text()))
    labels = {f"{LEVEL}/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    api.must(api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}, ""))
    # What the controllers of a cluster make in each namespace.
    api.must(api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}, NAMESPACE))

    every = sorted((chart / "ci").glob("*-values.yaml"))
    if len(every) < 8:
        raise Failed("there are fewer than eight sets of values")
    # What a platform brings by itself.
    for priority in {yaml.safe_load(values.read_text()).get("priorityClassName") for values in every} - {None}:
        one = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": priority}, "value": 1}
        api.must(api.create(one, ""))

    test = Test(api, chart, folder)
    helms = [Helm(program, folder, server.kubeconfig, test.controllers) for program in programs]
    for helm in helms:
        for values in every:
            test.life(values, helm, helm)
        for old in sorted((ROOT / "tests/helm/frozen").glob("*/*.yaml")):
            test.life(chart / "ci" / f"{old.stem}-values.yaml", helm, helm, old)
        for values in every:
            test.worse(helm, values)
    for values in every if len(helms) > 1 else []:
        test.life(values, helms[0], helms[-1])
    test.unknown()
    if missing := KINDS - test.kinds:
        raise Failed(f"no set of values has {sorted(missing)}")
    print(f"kube-apiserver {api.get('/version')['gitVersion']}: {test.controllers.pods} pods admitted: passed")


def main() -> None:
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    # So that what was started is ended, too, where this is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    etcd, program, crds, chart = (pathlib.Path(it).resolve() for it in sys.argv[1:5])
    with tempfile.TemporaryDirectory(prefix="p8broker-cluster-") as temporary:
        folder = pathlib.Path(temporary)
        try:
            with ApiServer(etcd, program, folder) as server:
                run(server, crds, chart, sys.argv[5:], folder)
        except Failed as failed:
            sys.exit(f"cluster.py: {failed}")


if __name__ == "__main__":
    main()
