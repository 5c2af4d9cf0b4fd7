"""Kubernetes manifests: a CronJob whose pod creates a RayJob and waits for it, or a RayCronJob."""

from __future__ import annotations

from typing import Any

import yaml

from jobs.schedules.job import ScheduledJob

TTL_S = 3_600
"""How long a finished run's Ray cluster is kept, to look at its logs."""
JOB_TTL_S = 7 * 86_400
GRACE_S = 900
"""By how much the waiting pod outlives the RayJob's deadline, so that the RayJob ends first."""
START_S = 3_600
UID = 10_001
Manifest = dict[str, Any]


def cron_job(job: ScheduledJob) -> str:
    """CronJob, what its pod reads (ConfigMap) and what it may do (ServiceAccount, Role, binding).

    A RayJob is created and gone at once for a CronJob: only a pod that waits for the RayJob's end
    makes `concurrencyPolicy: Forbid` mean what it says, and gives the Job its exit code.
    """
    runner = f"{job.name}-runner"
    rules = [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    role_ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": runner}
    subject = {"kind": "ServiceAccount", "name": runner, "namespace": job.namespace}
    rbac = "rbac.authorization.k8s.io/v1"
    documents = [
        _named(job, "v1", "ServiceAccount", job.service_account),
        _named(job, "v1", "ServiceAccount", runner) | {"automountServiceAccountToken": False},
        _named(job, rbac, "Role", runner) | {"rules": rules},
        _named(job, rbac, "RoleBinding", runner) | {"roleRef": role_ref, "subjects": [subject]},
        _named(job, "v1", "ConfigMap", f"{job.name}-rayjob")
        | {"data": {"rayjob.yaml": Text(_dump([ray_job(job)]))}},
        _named(job, "batch/v1", "CronJob", job.name) | {"spec": _cron_job_spec(job, runner)},
    ]
    head = (
        f"# Every run: {job.words}\n"
        "# The CronJob's pod creates a RayJob named after the scheduled time, waits until it has\n"
        "# ended and exits with its exit code (75, other writers were faster, counts as success).\n"
        "# Needs the KubeRay operator, 1.6 or newer. kubectl apply -f FILE\n"
    )
    return head + _dump(documents)


def ray_cron_job(job: ScheduledJob) -> str:
    """A RayCronJob. It knows no overlap and, before KubeRay 1.7, no time zones."""
    head = (
        f"# Every run: {job.words}\n"
        "# RayCronJob is alpha: KubeRay 1.6 or newer with --feature-gates=RayCronJob=true. It has\n"
        "# no concurrencyPolicy: a run that is not done by its deadline is stopped, and the\n"
        "# deadline must be shorter than the time between two runs. Prefer --target cronjob.\n"
        "# Exit code 75 counts as success.\n"
    )
    spec: Manifest = {"schedule": job.times.expression}
    if job.times.zone:
        head += (
            "# timeZone needs KubeRay 1.7; before it the operator's zone is taken, mostly UTC.\n"
        )
        spec["timeZone"] = job.times.zone
    spec |= {"suspend": False, "jobTemplate": ray_job(job)["spec"]}
    account = _named(job, "v1", "ServiceAccount", job.service_account)
    return head + _dump(
        [account, _named(job, "ray.io/v1", "RayCronJob", job.name) | {"spec": spec}]
    )


def ray_job(job: ScheduledJob) -> Manifest:
    """One run on a Ray cluster of its own, with token authentication."""
    autoscaled = job.size.grows
    cluster: Manifest = {
        "rayVersion": job.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": autoscaled,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
            "template": _ray_pod(job, "head", autoscaled),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": job.size.min_workers,
                "minReplicas": job.size.min_workers,
                "maxReplicas": job.size.max_workers,
                "rayStartParams": {},
                "template": _ray_pod(job, "worker", False),
            }
        ],
    }
    if autoscaled:
        cluster["autoscalerOptions"] = _autoscaler()
    spec = {
        "entrypoint": job.entrypoint,
        # The operator hands the entrypoint on as it is; a submitter pod would quote it again.
        "submissionMode": "HTTPMode",
        "activeDeadlineSeconds": job.deadline_s,
        "backoffLimit": 0,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_S,
        "rayClusterSpec": cluster,
    }
    return _named(job, "ray.io/v1", "RayJob", job.name) | {"spec": spec}


def _cron_job_spec(job: ScheduledJob, runner: str) -> Manifest:
    return {
        "schedule": job.times.expression,
        "timeZone": job.times.zone or "Etc/UTC",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": START_S,
        "successfulJobsHistoryLimit": job.history,
        "failedJobsHistoryLimit": job.history,
        "jobTemplate": {
            "spec": {
                "activeDeadlineSeconds": job.deadline_s + GRACE_S,
                "ttlSecondsAfterFinished": JOB_TTL_S,
                "backoffLimit": 0,
                # A node that is drained takes the waiting pod with it: a new one goes on waiting.
                "podFailurePolicy": {
                    "rules": [
                        {
                            "action": "Ignore",
                            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                        }
                    ]
                },
                "template": _waiting_pod(job, runner),
            }
        },
    }


def _waiting_pod(job: ScheduledJob, runner: str) -> Manifest:
    fields = {
        "NAMESPACE": "metadata.namespace",
        "JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
        "JOB_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
    }
    container = _container(job, "wait") | {
        "command": ["python", "-m", "jobs.rayjob", "/etc/orbit/rayjob.yaml"],
        "env": [
            {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
            for name, path in fields.items()
        ],
        "resources": _resources("100m", "128Mi", 0),
        "volumeMounts": [{"name": "rayjob", "mountPath": "/etc/orbit", "readOnly": True}],
    }
    return {
        "metadata": {"labels": _labels(job, "runner")},
        "spec": {
            "serviceAccountName": runner,
            "automountServiceAccountToken": True,
            "restartPolicy": "Never",
            "securityContext": _pod_security(),
            "containers": [container],
            "volumes": [{"name": "rayjob", "configMap": {"name": f"{job.name}-rayjob"}}],
        },
    }


def _ray_pod(job: ScheduledJob, part: str, autoscaled: bool) -> Manifest:
    cpus, memory, gpus = job.size.cpus, job.size.memory, job.size.gpus
    if part == "head":
        cpus, memory, gpus = job.head_cpus, job.head_memory, 0
    environment: list[Manifest] = []
    if job.secret:
        environment = [{"secretRef": {"name": job.secret}}]
    container = _container(job, f"ray-{part}") | {
        "envFrom": environment,
        "resources": _resources(cpus, memory, gpus),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    spec: Manifest = {
        "serviceAccountName": job.service_account,
        "automountServiceAccountToken": False,
        "securityContext": _pod_security(),
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ],
    }
    if autoscaled:  # the operator lets this account scale its cluster, for which it needs a token
        spec["automountServiceAccountToken"] = True
    if gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    return {"metadata": {"labels": _labels(job, "ray")}, "spec": spec}


def _autoscaler() -> Manifest:
    """The container that the operator puts beside the head; as it makes it by itself, a namespace
    that asks for hardened pods would refuse it, and it could not write its log."""
    return {
        "securityContext": _container_security(),
        "resources": _resources("500m", "512Mi", 0),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _container(job: ScheduledJob, name: str) -> Manifest:
    return {"name": name, "image": job.image, "securityContext": _container_security()}


def _container_security() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _pod_security() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": UID,
        "runAsGroup": UID,
        "fsGroup": UID,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _resources(cpus: str, memory: str, gpus: int) -> Manifest:
    # Ray reads the limits: a pod without them would take the whole node's CPUs for its own.
    wanted: Manifest = {"cpu": cpus, "memory": memory}
    if gpus:
        wanted["nvidia.com/gpu"] = gpus
    return {"requests": dict(wanted), "limits": dict(wanted)}


def _labels(job: ScheduledJob, part: str) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "orbit", "orbit/part": part, "orbit/job": job.name}


def _named(job: ScheduledJob, version: str, kind: str, name: str) -> Manifest:
    metadata = {
        "name": name,
        "namespace": job.namespace,
        "labels": {"app.kubernetes.io/part-of": "orbit", "orbit/job": job.name},
    }
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


class Text(str):
    """A string of several lines, written as a block."""


def _block(dumper: yaml.SafeDumper, text: Text) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(Text, _block)


def _dump(documents: list[Manifest]) -> str:
    return "---\n".join(
        yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100) for document in documents
    )
