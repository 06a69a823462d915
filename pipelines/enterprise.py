"""The profile of a cluster with GPUs, Kubeflow Trainer, the Spark operator and Kueue.

Names that manifests/overlays/enterprise makes stand here once: the workspace, the queue, the priority. The registry of
the images is read from that overlay's values/values.env.
"""

from __future__ import annotations

from components.finetune_lora_distributed.component import finetune_lora_distributed
from components.images import SPARK_IMAGE
from components.pretrain_distributed.component import pretrain_distributed
from components.tokenize_corpus_spark.component import tokenize_corpus_spark
from components.validate_data_spark.component import validate_data_spark
from pipelines import enterprise_values
from pipelines.profile import ON_A_CLUSTER, Pod, Profile, Setting, Substitute

WORKSPACE = {"aic-gpt-workspace": "/workspace"}
CACHE = {"MODELCORE_CACHE": "/workspace/cache"}

# Kueue holds a pod with the first label back until its queue has room; the second is what it sorts the queue by.
# KFP sets no priorityClassName, so this is the priority that a stage has.
QUEUE = {"kueue.x-k8s.io/queue-name": "aic-gpt", "kueue.x-k8s.io/priority-class": "aic-gpt-training"}

# As NVIDIA's GPU operator and most clouds mark nodes with GPUs.
GPU_NODES = {"nvidia.com/gpu.present": "true"}
GPU_TAINT = "nvidia.com/gpu"

# Where nodes pull the project's images from; empty: they have them, under their bare names.
REGISTRY = enterprise_values.read().get("IMAGE_REGISTRY", "")

# A stage that hangs is not to hold its pod for ever. These go by the size of a model, some minutes for a large one, or
# need seconds. What reads a corpus, trains or evaluates takes as long as it takes, and has no limit.
_HOUR = 3600
_MODEL_TIMEOUT, _REPORT_TIMEOUT = 12 * _HOUR, _HOUR

# A stage that only starts a job elsewhere and follows it. It is never queued itself: one that held a place in the queue
# while its job waits for one could wait for ever.
_LAUNCHER = Pod(
    cpu="250m", memory="512Mi", cpu_limit="1", memory_limit="2Gi", claims=WORKSPACE, retries=3, storage=True
)

_GPU = Pod(
    cpu="4",
    memory="32Gi",
    cpu_limit="16",
    memory_limit="64Gi",
    gpus=1,
    shared_memory="8Gi",
    node_selector=GPU_NODES,
    tolerations=(GPU_TAINT,),
    labels=QUEUE,
    claims=WORKSPACE,
    retries=2,
    storage=True,
)

_SETTINGS = (
    Setting("languages", "", "ISO 639-1 codes of the languages to keep of the corpus, a comma between; empty: all."),
    Setting("quality", "none", "gopher leaves out English text that fails Gopher's rules; none: nothing."),
    Setting("near_duplicates", 0.0, "Leave out of the corpus texts so alike, 0.7 to 1; 0: none."),
    Setting("executors", 2, "Executors of the Spark applications that prepare the text, of two cores each."),
    Setting("spark_image", f"{REGISTRY}/{SPARK_IMAGE}".lstrip("/"), "What they and their drivers run."),
    Setting("parallel", "recipe", "How the processes of pretraining share the work: ddp or fsdp; recipe: as it says."),
    Setting("shard_size", 0, "With fsdp: processes that a weight is sharded over; 0: all."),
    Setting("tensor_parallel", 0, "Processes of pretraining that share each large matrix; 0: as the recipe says."),
    Setting("nodes", 1, "Nodes of pretraining's job."),
    Setting("processes_per_node", 1, "Processes on each of them, one a GPU."),
    Setting("lora_nodes", 1, "Nodes of the tuning's job."),
    Setting("lora_processes_per_node", 1, "Processes on each of them, one a GPU."),
    Setting("runtime", "aic-gpt-torch", "The ClusterTrainingRuntime of both jobs: image, resources, queue, priority."),
)
_FILTERS = ("languages", "quality", "near_duplicates")
_SPARK = {"executors": "executors", "image": "spark_image"}
_LAID_OUT = ("parallel", "shard_size", "tensor_parallel", "nodes", "processes_per_node", "runtime")

ENTERPRISE = Profile(
    "enterprise",
    substitutes={
        "validate_data": Substitute(validate_data_spark, {name: name for name in _FILTERS} | _SPARK),
        "tokenize_corpus": Substitute(tokenize_corpus_spark, _SPARK),
        "pretrain": Substitute(pretrain_distributed, {name: name for name in _LAID_OUT}),
        "finetune_lora": Substitute(
            finetune_lora_distributed,
            {"nodes": "lora_nodes", "processes_per_node": "lora_processes_per_node", "runtime": "runtime"},
        ),
    },
    settings=_SETTINGS,
    defaults=ON_A_CLUSTER,
    registry=REGISTRY,
    pods={
        "validate_data": _LAUNCHER,
        "train_tokenizer": Pod(
            cpu="1",
            memory="1Gi",
            cpu_limit="4",
            memory_limit="4Gi",
            claims=WORKSPACE,
            environment=CACHE,
            retries=1,
        ),
        "tokenize_corpus": _LAUNCHER,
        "pretrain": _LAUNCHER,
        "finetune_lora": _LAUNCHER,
        "convert_checkpoint": Pod(
            cpu="2",
            memory="16Gi",
            cpu_limit="8",
            memory_limit="64Gi",
            claims=WORKSPACE,
            retries=1,
            timeout=_MODEL_TIMEOUT,
        ),
        "evaluate": _GPU,
        "check_drift": _GPU,
        "pretrain_trial": _GPU,
        "choose_trial": Pod(
            cpu="1",
            memory="4Gi",
            cpu_limit="4",
            memory_limit="16Gi",
            claims=WORKSPACE,
            retries=1,
            timeout=_MODEL_TIMEOUT,
        ),
        "register_model": Pod(
            cpu="1", memory="16Gi", cpu_limit="4", memory_limit="64Gi", retries=1, timeout=_MODEL_TIMEOUT
        ),
        "write_report": Pod(
            cpu="100m", memory="128Mi", cpu_limit="1", memory_limit="1Gi", retries=1, timeout=_REPORT_TIMEOUT
        ),
    },
)
