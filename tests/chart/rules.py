"""What every rendered object must keep to, as functions from objects to a list of complaints.

Pod Security's profile `restricted`, and those of kube-linter's rules that say something about this
chart. Written out here, so that no program is needed for them; the names are kube-linter's.
"""

import re

LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
ALLOWED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral",
                   "persistentVolumeClaim", "projected", "secret"}


# What has pods that answer somebody.
SERVING = ("StatefulSet", "DaemonSet", "Deployment")


def pod_of(thing):
    """The metadata and the spec of the pods that an object makes."""
    if thing["kind"] == "Pod":
        return thing["metadata"], thing["spec"]
    if thing["kind"] in SERVING:
        return thing["spec"]["template"]["metadata"], thing["spec"]["template"]["spec"]
    if thing["kind"] == "CronJob":
        return pod_of(thing["spec"]["jobTemplate"] | {"kind": "Job"})
    if thing["kind"] == "Job":
        template = thing["spec"]["template"]
        return template.get("metadata", {}), template["spec"]
    return None


def containers(spec):
    """Those that start the pod and those that run."""
    return spec.get("initContainers", []) + spec["containers"]


def restricted(spec):
    """Pod Security Standards, `restricted`, which includes `baseline`."""
    bad = []
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            bad.append(f"{key} is set")
    if spec.get("hostUsers") is True:
        bad.append("hostUsers is set")
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= ALLOWED_VOLUMES:
            bad.append(f"volume {volume['name']} is a {', '.join(sorted(kinds))}")
    whole = spec.get("securityContext", {})
    for name in ("sysctls", "windowsOptions", "seLinuxOptions", "appArmorProfile"):
        if whole.get(name):
            bad.append(f"securityContext.{name} is set")
    if whole.get("supplementalGroups") and 0 in whole["supplementalGroups"]:
        bad.append("group 0")
    if whole.get("runAsNonRoot") is False:
        bad.append("runAsNonRoot is false")
    if whole.get("runAsUser") == 0:
        bad.append("runs as root")
    for container in containers(spec):
        name, own = container["name"], container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            bad.append(f"{name}: allowPrivilegeEscalation is not false")
        if own.get("privileged"):
            bad.append(f"{name}: privileged")
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            bad.append(f"{name}: capabilities are not all dropped")
        if own.get("capabilities", {}).get("add"):
            bad.append(f"{name}: capabilities are added")
        if own.get("runAsNonRoot", whole.get("runAsNonRoot")) is not True:
            bad.append(f"{name}: runAsNonRoot is not true")
        if own.get("runAsUser", whole.get("runAsUser")) == 0:
            bad.append(f"{name}: runs as root")
        profile = own.get("seccompProfile", whole.get("seccompProfile", {}))
        if profile.get("type") not in ("RuntimeDefault", "Localhost"):
            bad.append(f"{name}: no seccomp profile")
        if own.get("procMount", "Default") != "Default":
            bad.append(f"{name}: procMount is set")
        for port in container.get("ports", []):
            if port.get("hostPort"):
                bad.append(f"{name}: hostPort")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            for handler in ("httpGet", "tcpSocket"):
                if container.get(probe, {}).get(handler, {}).get("host"):
                    bad.append(f"{name}: {probe} names a host")
    return bad


def linted(thing, everything):
    """kube-linter's rules for one object among all that are rendered with it."""
    bad = []
    pod = pod_of(thing)
    if pod is None:
        return bad
    labels, spec = pod[0].get("labels", {}), pod[1]
    namespace = thing["metadata"].get("namespace")
    if thing["kind"] == "CronJob":
        job = thing["spec"]["jobTemplate"]["spec"]
        if thing["spec"].get("concurrencyPolicy") != "Forbid":
            bad.append("two runs at once")
        for key in ("startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
            if key not in thing["spec"]:
                bad.append(f"{key} is not said")
        for key in ("activeDeadlineSeconds", "backoffLimit"):
            if key not in job:
                bad.append(f"{key} is not said")
    if thing["kind"] in ("CronJob", "Job") and spec.get("restartPolicy") != "Never":
        bad.append("job-restart-policy")
    if thing["kind"] in SERVING:
        selector = thing["spec"]["selector"]["matchLabels"]
        if not selector.items() <= labels.items():
            bad.append("mismatching-selector")
    if thing["kind"] in ("StatefulSet", "Deployment"):
        terms = spec.get("affinity", {}).get("podAntiAffinity", {})
        if not terms:
            bad.append("no-anti-affinity")
        for term in terms.get("preferredDuringSchedulingIgnoredDuringExecution", []):
            wanted = term["podAffinityTerm"]["labelSelector"]["matchLabels"]
            if not wanted.items() <= labels.items():
                bad.append("no-anti-affinity: selects other pods")
    constraints = spec.get("topologySpreadConstraints", [])
    if thing["kind"] == "Deployment" and thing["metadata"].get("labels") and len(constraints) != 2:
        bad.append("not spread over zones and nodes")
    for term in constraints:
        if not term["labelSelector"]["matchLabels"].items() <= labels.items():
            bad.append("topologySpreadConstraints select other pods")
    whole = spec.get("securityContext", {})
    if "fsGroup" in whole and whole.get("fsGroupChangePolicy") != "OnRootMismatch":
        bad.append("each start would open the server's files to the group")
    for key, value in (thing["metadata"].get("labels", {}) | labels).items():
        if not LABEL.fullmatch(value) or len(value) > 63:
            bad.append(f"label {key} cannot be {value}")
    accounts = {(it["metadata"].get("namespace"), it["metadata"]["name"])
                for it in everything if it["kind"] == "ServiceAccount"}
    if (namespace, spec.get("serviceAccountName")) not in accounts:
        bad.append("non-existent-service-account")
    if spec.get("automountServiceAccountToken") is not False:
        bad.append("automounts a token")
    if spec.get("enableServiceLinks") is not False:
        bad.append("enableServiceLinks is not false")
    if spec.get("securityContext", {}).get("runAsUser", 0) < 10000:
        bad.append("a user id below 10000")
    volumes = {it["name"]: it for it in spec.get("volumes", [])}
    volumes |= {it["metadata"]["name"]: it
                for it in thing["spec"].get("volumeClaimTemplates", [])}
    for volume in volumes.values():
        mode = volume.get("secret", {}).get("defaultMode")
        if "secret" in volume and mode != 0o440:
            bad.append(f"secret {volume['name']} has mode {mode}")
    claims = {it["metadata"]["name"] for it in everything if it["kind"] == "PersistentVolumeClaim"}
    for volume in volumes.values():
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim and claim not in claims:
            bad.append(f"no claim {claim}")
    used = set()
    for container in containers(spec):
        name = container["name"]
        image = container["image"]
        if "@" not in image and (image.endswith(":latest") or ":" not in image.split("/")[-1]):
            bad.append(f"{name}: latest-tag")
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            bad.append(f"{name}: no-read-only-root-fs")
        env = [it["name"] for it in container.get("env", [])]
        if len(env) != len(set(env)):
            bad.append(f"{name}: duplicate-env-var")
        for it in container.get("env", []):
            if "secretKeyRef" in it.get("valueFrom", {}):
                bad.append(f"{name}: read-secret-from-env-var {it['name']}")
            if "value" in it and any(w in it["name"] for w in ("SECRET", "PASSWORD", "TOKEN")):
                bad.append(f"{name}: env-var-secret {it['name']}")
        if container.get("envFrom"):
            bad.append(f"{name}: envFrom")
        resources = container.get("resources", {})
        for which in ("requests", "limits"):
            for what in ("cpu", "memory"):
                if what not in resources.get(which, {}):
                    bad.append(f"{name}: unset-{what}-requirements in {which}")
        if resources.get("requests", {}).get("memory") != resources.get("limits", {}).get("memory"):
            bad.append(f"{name}: memory is promised that is not set aside")
        ports = {it["name"]: it["containerPort"] for it in container.get("ports", [])}
        if thing["kind"] in SERVING:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                port = container.get(probe, {}).get("httpGet", {}).get("port")
                if port not in ports:
                    bad.append(f"{name}: {probe} asks a port that is not there")
        for mount in container.get("volumeMounts", []):
            used.add(mount["name"])
            if mount["name"] not in volumes:
                bad.append(f"{name}: mounts {mount['name']}, which is not there")
            elif {"secret", "configMap"} & set(volumes[mount["name"]]) and not mount.get("readOnly"):
                bad.append(f"{name}: can write to {mount['name']}")
    for name in set(volumes) - used:
        bad.append(f"nobody mounts {name}")
    return bad


def joined(everything):
    """Rules for what must fit together: Services, their pods, and NetworkPolicies."""
    bad = []
    pods = [(it["metadata"].get("namespace"), *pod_of(it), it) for it in everything if pod_of(it)]
    for it in everything:
        namespace, name = it["metadata"].get("namespace"), it["metadata"]["name"]
        if it["kind"] == "Service":
            selected = [spec for where, meta, spec, _ in pods
                        if where == namespace
                        and it["spec"]["selector"].items() <= meta.get("labels", {}).items()]
            if len(selected) != 1:
                bad.append(f"dangling-service {name}: {len(selected)} kinds of pods")
            for spec in selected:
                ports = {p["name"] for c in spec["containers"] for p in c.get("ports", [])}
                for port in it["spec"]["ports"]:
                    if port["targetPort"] not in ports:
                        bad.append(f"invalid-target-ports {name}: {port['targetPort']}")
        if it["kind"] == "ServiceMonitor":
            for where, wanted in [(namespace, it["spec"]["selector"]["matchLabels"])]:
                found = [s for s in everything if s["kind"] == "Service"
                         and s["metadata"]["namespace"] == where
                         and wanted.items() <= s["metadata"]["labels"].items()]
                ports = {p["name"] for s in found for p in s["spec"]["ports"]}
                if len(found) != 1 or not {e["port"] for e in it["spec"]["endpoints"]} <= ports:
                    bad.append(f"{name}: scrapes {len(found)} services")
        if it["kind"] == "PodMonitor":
            selected = [spec for where, meta, spec, _ in pods
                        if where == namespace
                        and it["spec"]["selector"]["matchLabels"].items() <= meta.get("labels", {}).items()]
            ports = {p["name"] for spec in selected for c in spec["containers"] for p in c.get("ports", [])}
            if len(selected) != 1 or not {e["port"] for e in it["spec"]["podMetricsEndpoints"]} <= ports:
                bad.append(f"{name}: scrapes {len(selected)} kinds of pods")
        if it["kind"] == "PodDisruptionBudget":
            selected = [owner["spec"].get("replicas", 2) for where, meta, _, owner in pods
                        if where == namespace
                        and it["spec"]["selector"]["matchLabels"].items() <= meta.get("labels", {}).items()]
            if len(selected) != 1:
                bad.append(f"{name}: a budget for {len(selected)} kinds of pods")
            elif it["spec"]["maxUnavailable"] >= selected[0]:
                bad.append(f"{name}: a budget that lets all of them go")
        if it["kind"] == "HorizontalPodAutoscaler":
            target = it["spec"]["scaleTargetRef"]
            scaled = [other for other in everything if other["metadata"].get("namespace") == namespace
                      and (other["kind"], other["metadata"]["name"]) == (target["kind"], target["name"])]
            if len(scaled) != 1:
                bad.append(f"dangling-horizontalpodautoscaler {name}: it scales nothing")
            for other in scaled:
                if "replicas" in other["spec"]:
                    bad.append(f"{name}: two say how many there are")
        if it["kind"] == "Deployment" and it["spec"].get("replicas", 2) > 1 \
                and it["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "server":
            labels = it["spec"]["template"]["metadata"]["labels"]
            budgets = [other for other in everything if other["kind"] == "PodDisruptionBudget"
                       and other["metadata"]["namespace"] == namespace
                       and other["spec"]["selector"]["matchLabels"].items() <= labels.items()]
            if len(budgets) != 1:
                bad.append(f"{name}: {len(budgets)} budgets")
        if it["kind"] == "ServiceAccount" and it.get("automountServiceAccountToken") is not False:
            bad.append(f"{name}: automounts a token")
        if it["kind"] == "NetworkPolicy":
            if it["spec"]["policyTypes"] != ["Ingress", "Egress"]:
                bad.append(f"{name}: is not for both ways")
            for way, peers in (("ingress", "from"), ("egress", "to")):
                for rule in it["spec"].get(way) or []:
                    # Without peers, or with none, a rule is for everybody.
                    if not rule.get(peers):
                        bad.append(f"{name}: {way} for everybody")
    policies = [it for it in everything if it["kind"] == "NetworkPolicy"]
    for where, meta, _, owner in pods if policies else []:
        found = [p for p in policies if p["metadata"]["namespace"] == where
                 and p["spec"]["podSelector"]["matchLabels"].items() <= meta.get("labels", {}).items()]
        if len(found) != 1:
            bad.append(f"{owner['kind']} {owner['metadata']['name']} has {len(found)} policies")
    return bad
