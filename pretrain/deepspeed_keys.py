"""The keys of DeepSpeed's settings, with the values that they have where nobody sets them (DeepSpeed 0.19).

DeepSpeed itself is not asked, it takes seconds to import; a test compares. Keys that it calls deprecated are missing.
"""

from __future__ import annotations

import sys
from typing import Any

OFFLOAD_PARAM: dict[str, Any] = {
    "device": "none",
    "nvme_path": None,
    "buffer_count": 5,
    "buffer_size": 100_000_000,
    "max_in_cpu": 1_000_000_000,
    "pin_memory": True,
}
OFFLOAD_OPTIMIZER: dict[str, Any] = {
    "device": "none",
    "nvme_path": None,
    "buffer_count": 4,
    "pin_memory": True,
    "pipeline_read": False,
    "pipeline_write": False,
    "fast_init": False,
    "ratio": 1.0,
    "super_offload": False,
    "cpuadam_cores_perc": 0.8,
}
ZERO: dict[str, Any] = {
    "stage": 0,
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 500_000_000,
    "use_multi_rank_bucket_allreduce": True,
    "allgather_partitions": True,
    "allgather_bucket_size": 500_000_000,
    "overlap_comm": None,
    "compute_grad_norm": True,
    "load_from_fp32_weights": True,
    "elastic_checkpoint": False,
    "offload_param": OFFLOAD_PARAM,
    "offload_optimizer": OFFLOAD_OPTIMIZER,
    "sub_group_size": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_model_persistence_threshold": sys.maxsize,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_gather_16bit_weights_on_model_save": False,
    "stage3_module_granularity_threshold": 0,
    "stage3_use_all_reduce_for_fetch_params": False,
    "stage3_allgather_sequential": False,
    "ignore_unused_parameters": True,
    "legacy_stage1": False,
    "round_robin_gradients": False,
    "parameter_alignment": False,
    "zero_hpz_partition_size": 1,
    "zero_quantized_weights": False,
    "zero_quantized_nontrainable_weights": False,
    "zero_quantized_gradients": False,
    "memory_efficient_linear": True,
    "pipeline_loading_checkpoint": False,
    "override_module_apply": True,
    "log_trace_cache_warnings": False,
    "enable_sanity_checks": False,
    "save_muon_momentum_buffer_in_memory": False,
}
# keys that a user may set
SETTABLE: dict[str, Any] = {
    "aio": {
        "block_size": 1_048_576,
        "queue_depth": 8,
        "intra_op_parallelism": 1,
        "single_submit": False,
        "overlap_events": True,
        "use_gds": False,
    },
    "comms_logger": {"enabled": False, "prof_all": True, "prof_ops": [], "verbose": False, "debug": False},
    "communication_data_type": None,
    "csv_monitor": {"enabled": False, "output_path": "", "job_name": "DeepSpeedJobName"},
    "comet": {
        "enabled": False,
        "samples_log_interval": 100,
        "project": None,
        "workspace": None,
        "api_key": None,
        "experiment_name": None,
        "experiment_key": None,
        "online": None,
        "mode": None,
    },
    "disable_allgather": False,
    "disable_python_gc": False,
    "dump_state": False,
    "flops_profiler": {
        "enabled": False,
        "recompute_fwd_factor": 0.0,
        "profile_step": 1,
        "module_depth": -1,
        "top_modules": 1,
        "detailed": True,
        "output_file": None,
    },
    "gradient_predivide_factor": 1.0,
    "log_level": None,
    "memory_breakdown": False,
    "prescale_gradients": False,
    # the engine's own: it reports by itself
    "steps_per_print": 10**9,
    "tensorboard": {"enabled": False, "output_path": "", "job_name": "DeepSpeedJobName"},
    "timers": {"throughput": {"enabled": True, "synchronized": True}},
    "wall_clock_breakdown": False,
    "wandb": {"enabled": False, "group": None, "team": None, "project": "deepspeed"},
    "zero_allow_untested_optimizer": False,
    "zero_force_ds_cpu_optimizer": False,
    "zero_optimization": ZERO,
}
# keys whose default is null and that are no text where they are set
SWITCHES = {"overlap_comm", "online"}
# tables that may be null for DeepSpeed: the same as leaving them out
NULLABLE = {"aio", "offload_param", "offload_optimizer"}
# keys that take some values alone
CHOICES: dict[str, tuple[Any, ...]] = {
    "aio.use_gds": (False,),
    "communication_data_type": (None, "fp16", "bf16", "fp32"),
    "log_level": (None, "debug", "info", "warning", "error", "critical"),
    "zero_optimization.stage": (0, 1, 2, 3),
}
# old names that DeepSpeed translates, past what is read of its settings here
REPLACED = {
    "cpu_offload": "offload_optimizer",
    "cpu_offload_param": "offload_param",
    "cpu_offload_use_pin_memory": "offload_optimizer.pin_memory",
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
}
