"""What differs between the places that a pipeline runs in: resources, secrets, and the components that do a stage.

The pipelines are one function each; a profile says how its stages are run. :data:`FREE_TIER` is here,
:data:`pipelines.enterprise.ENTERPRISE` in a file of its own.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from kfp import dsl, kubernetes

from modelcore import storage

Value: TypeAlias = str | int | float | list[str]
Component: TypeAlias = Any  # of KFP: what @dsl.component makes
Start: TypeAlias = Callable[..., Any]  # called with a component and its inputs, makes the task

# The secret that opens object storage to the stages that read or write s3://, where a cluster has one: keys are the
# variables that boto3 reads. It is named here and made by whoever runs the cluster; MLflow's KFP names itself.
STORAGE_SECRET = "aic-gpt-storage"  # noqa: S105 (a name)


@dataclass(frozen=True)
class Setting:
    """A parameter that a pipeline has besides those of its function.

    Attributes:
        name: Its name.
        default: Its value where nobody gives one; its type is the parameter's.
        description: What it is, for the UI.
    """

    name: str
    default: Value
    description: str


@dataclass(frozen=True)
class Pod:
    """What the pod of a stage asks a cluster for; empty values ask for nothing.

    Attributes:
        cpu: Cores requested, as Kubernetes writes them.
        memory: Memory requested.
        cpu_limit: Cores at most.
        memory_limit: Memory at most.
        gpus: GPUs; a pod has them for itself.
        shared_memory: Size of /dev/shm, in memory; counts as the pod's own.
        node_selector: Labels that its node must have.
        tolerations: Keys of the taints that it tolerates, whatever their value.
        labels: The pod's.
        claims: Where each persistent volume claim is mounted, by its name.
        environment: Variables that say where things are; what changes a result is a parameter.
        retries: Times that a stage that failed is begun again.
        storage: Whether it finds the keys to object storage in its environment.
        timeout: Seconds that each attempt may take once its pod has a node; 0: no limit. Only for stages whose time
            does not grow with the text or the training.
    """

    cpu: str = ""
    memory: str = ""
    cpu_limit: str = ""
    memory_limit: str = ""
    gpus: int = 0
    shared_memory: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    retries: int = 0
    storage: bool = False
    timeout: int = 0

    def give(self, task: Any) -> None:
        """Writes all this into a task of KFP's."""
        # Before each setting KFP asks for the whole stack, with its source, to name the setter should the task have no
        # container. Every task here has one; and that took 5 of the 6 seconds in which the pipelines are made.
        task._ensure_container_spec_exists = lambda: None
        for value, write in (
            (self.cpu, task.set_cpu_request),
            (self.memory, task.set_memory_request),
            (self.cpu_limit, task.set_cpu_limit),
            (self.memory_limit, task.set_memory_limit),
        ):
            if value:
                write(value)
        if self.gpus:
            task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(self.gpus)
        if self.shared_memory:
            kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", "Memory", self.shared_memory)  # noqa: S108
        for key, value in self.node_selector.items():
            kubernetes.add_node_selector(task, key, value)
        for key in self.tolerations:
            kubernetes.add_toleration(task, key=key, operator="Exists", effect="NoSchedule")
        for key, value in self.labels.items():
            kubernetes.add_pod_label(task, key, value)
        for claim, path in self.claims.items():
            kubernetes.mount_pvc(task, claim, path)
        for name, value in self.environment.items():
            task.set_env_variable(name, value)
        if self.retries:
            task.set_retry(self.retries, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="900s")
        if self.timeout:
            kubernetes.set_timeout(task, self.timeout)
        if self.storage:
            names = {name: name for name in storage.VARIABLES}
            kubernetes.use_secret_as_env(task, STORAGE_SECRET, names, optional=True)


@dataclass(frozen=True)
class Substitute:
    """A component that does a stage in place of the one that does it on one machine.

    Attributes:
        component: It takes all that the other takes, and gives the same outputs.
        settings: What it takes besides: the pipeline's setting for each of its inputs.
    """

    component: Component
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Profile:
    """How the stages of a pipeline are run.

    Attributes:
        name: Its name; the compiled pipeline's file ends with it, but the free tier's.
        pods: What each stage's pod asks for, by the name of its component on one machine.
        substitutes: The components that do a stage otherwise, by the same name.
        settings: What a pipeline of this profile can be told besides.
        defaults: What a pipeline's parameters are where nobody gives them, if not as its function has it; None: they
            must be given.
        registry: Where nodes pull the project's images from; empty: they have them, under their bare names.
    """

    name: str
    pods: Mapping[str, Pod]
    substitutes: Mapping[str, Substitute] = field(default_factory=dict)
    settings: Sequence[Setting] = ()
    defaults: Mapping[str, Value | None] = field(default_factory=dict)
    registry: str = ""

    def without(self, stage: str) -> Profile:
        """This profile for a pipeline that does not have the stage: what only its substitute is told is left out."""
        substitutes = {name: one for name, one in self.substitutes.items() if name != stage}
        told = {setting for one in substitutes.values() for setting in one.settings.values()}
        settings = [setting for setting in self.settings if setting.name in told]
        return dataclasses.replace(self, substitutes=substitutes, settings=settings)

    def task(self, component: Component, settings: Mapping[str, Any], **inputs: Any) -> Any:
        """The task of a stage, inside a pipeline.

        Args:
            component: The stage's component on one machine.
            settings: The pipeline's settings of this profile, by name.
            **inputs: What the component is given.
        """
        stage = component.python_func.__name__
        if substitute := self.substitutes.get(stage):
            component = substitute.component
            inputs |= {name: settings[setting] for name, setting in substitute.settings.items()}
        # Caching by KFP is off throughout: its key knows a path, not what lies there. The pure stages keep a
        # cache of their own that goes by content (MODELCORE_CACHE).
        task = component(**inputs).set_caching_options(False)
        self.pods.get(stage, Pod()).give(task)
        if self.registry:
            task.set_container_image(f"{self.registry}/{component.component_spec.implementation.container.image}")
        return task


def make_pipeline(
    stages: Callable[..., None],
    profile: Profile,
    *,
    name: str,
    description: str,
    like: Callable[..., None] | None = None,
    settings: Sequence[Setting] = (),
) -> Any:
    """A pipeline of KFP's.

    Args:
        stages: Makes the tasks, given the profile as ``profile`` and each of the pipeline's parameters by its name.
        profile: How the stages are run.
        name: The pipeline's name.
        description: What it does, for the UI.
        like: The function whose parameters, but the keyword-only ones, the pipeline has, as its docstring describes
            them; None: ``stages``.
        settings: The pipeline's parameters besides those and the profile's.
    """
    like = like or stages
    described = inspect.getdoc(like) or ""
    given = [
        parameter
        for parameter in inspect.signature(like, eval_str=True).parameters.values()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    for place, parameter in enumerate(given):
        if parameter.name in profile.defaults:
            default = profile.defaults[parameter.name]
            given[place] = parameter.replace(default=inspect.Parameter.empty if default is None else default)
    given.sort(key=lambda one: one.default is not inspect.Parameter.empty)  # as Python wants it
    for one in (*settings, *profile.settings):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        given.append(inspect.Parameter(one.name, kind, default=one.default, annotation=type(one.default)))
        described += f"\n    {one.name}: {one.description}"

    def pipeline(*values: Any) -> None:
        stages(profile=profile, **dict(zip(signature.parameters, values, strict=True)))

    signature = inspect.Signature(given)
    pipeline.__signature__ = signature  # type: ignore[attr-defined]
    pipeline.__doc__ = described
    return dsl.pipeline(name=name, description=description)(pipeline)


# What pods are to read they cannot find in their images: the sample is not there.
ON_A_CLUSTER: Mapping[str, Value | None] = {"corpus": None, "heldout": "", "instructions": None}

# Requested is what a stage of the default run was measured to need at its peak, and a little: so no node is given more
# stages than it holds. There are no limits, for larger presets and texts need more.
FREE_TIER = Profile(
    "free-tier",
    pods={
        "validate_data": Pod(cpu="250m", memory="512Mi", storage=True),
        "train_tokenizer": Pod(cpu="250m", memory="256Mi"),
        "tokenize_corpus": Pod(cpu="250m", memory="256Mi"),
        "pretrain": Pod(cpu="500m", memory="512Mi", storage=True),
        "finetune_lora": Pod(cpu="500m", memory="768Mi", storage=True),
        "convert_checkpoint": Pod(cpu="250m", memory="640Mi"),
        "evaluate": Pod(cpu="500m", memory="640Mi", storage=True),
        "register_model": Pod(cpu="250m", memory="768Mi"),
        "write_report": Pod(cpu="100m", memory="128Mi"),
        "pretrain_trial": Pod(cpu="500m", memory="512Mi", storage=True),
        "choose_trial": Pod(cpu="100m", memory="512Mi"),
        "check_drift": Pod(cpu="500m", memory="768Mi", storage=True),
    },
)
