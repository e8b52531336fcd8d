"""tests/ mirrors the sources: a module's tests are in the file of its name, or here it says where, and why there."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from tests.support.sources import FILES, ROOT

# (why, where below tests/, modules; "a.*" for the modules of a package)
ELSEWHERE: list[tuple[str, str, list[str]]] = [
    (
        "limits and how commands end are tried on all commands",
        "test_commands.py",
        ["partitioner.limits", "tools.command"],
    ),
    (
        "the guard works before anything is imported, so it is tried on the installed wheel, as is the version",
        "test_install.py",
        ["profiles.import_guard", "partitioner._version"],
    ),
    (
        "the runs of a protocol are tried by its command",
        "tools/quality/test_protocol.py",
        ["tools.quality.protocol_runs"],
    ),
    (
        "a base class, tried through the documents that are read with it",
        "profiles/test_cost_profile.py",
        ["profiles.records"],
    ),
    (
        "errors are raised by all parts, and their texts tested where they are raised",
        "partitioner/test_cli.py",
        ["partitioner.errors"],
    ),
    ("options are tried by the command that has them", "partitioner/test_cli.py", ["partitioner.cli_options"]),
    ("so are those of run-plan", "runtime/test_cli.py", ["runtime.cli_options"]),
    ("so are errors at run time", "runtime/test_engine.py", ["runtime.errors"]),
    (
        "one stream, and a call, are tried where all streams are",
        "runtime/driver/test_streams.py",
        ["runtime.driver.stream", "runtime.driver.denoiser_call"],
    ),
    (
        "all that following rows needs is tried by following them",
        "partitioner/graph/test_row_flow.py",
        [
            "partitioner.graph.row_digit",
            "partitioner.graph.row_moves",
            "partitioner.graph.row_operators",
            "partitioner.graph.row_parts",
            "partitioner.graph.row_places",
            "partitioner.graph.row_values",
        ],
    ),
    (
        "the pattern of an operator is what its rule gives",
        "partitioner/graph/test_row_rules.py",
        ["partitioner.graph.row_call", "partitioner.graph.row_index_rules", "partitioner.graph.row_pattern"],
    ),
    (
        "the driver of a denoiser is all of an engine but the start and the end",
        "runtime/test_engine_changes.py",
        ["runtime.driver.denoiser_driver"],
    ),
    (
        "their docstrings' examples say it all",
        "test_doctests.py",
        [
            "partitioner.models.guidance",
            "partitioner.models.sizes",
            "partitioner.tables",
            "partitioner.graph.tensor_meta",
            "profiles.collector",
            "runtime.driver.warn_once",
        ],
    ),
    (
        "what AsyncDiff does is compared with what this project's splits do",
        "partitioner/baselines/test_compare.py",
        ["partitioner.graph.modules"],
    ),
    (
        "machines and actions are what is played",
        "partitioner/simulator/test_play.py",
        ["partitioner.simulator.*"],
    ),
    (
        "what is measured is tried through the measurement that needs it",
        "partitioner/costs/test_measure.py",
        ["partitioner.costs.operator_calls", "partitioner.costs.device_description"],
    ),
    (
        "two dataclasses, filled by each source of costs",
        "partitioner/costs/test_roofline.py",
        ["partitioner.costs.node_costs"],
    ),
    (
        "speeds matter to a fleet of unequal devices, and are tested with one",
        "partitioner/test_fleet.py",
        ["partitioner.costs.relative_speed"],
    ),
    ("the walk goes by it", "partitioner/graph/test_reachable.py", ["partitioner.graph.belonging"]),
    ("nodes are what a graph is made of", "partitioner/graph/test_ir.py", ["partitioner.graph.nodes"]),
    (
        "names of operators, and torch's private ones, are what tracing needs, and are tried by tracing",
        "partitioner/graph/test_reader.py",
        ["partitioner.graph.operators", "partitioner.graph.storages", "partitioner.graph.torch_private.*"],
    ),
    (
        "building a denoiser and its example inputs are steps of tracing a described model",
        "partitioner/models/test_spec.py",
        ["partitioner.models.build", "partitioner.models.find_spec", "partitioner.models.inputs"],
    ),
    (
        "a name's description and the class's are compared with the pipeline's call as one",
        "partitioner/models/test_architectures.py",
        ["partitioner.models.architectures.*", "partitioner.models.built_in", "partitioner.models.described_spec"],
    ),
    (
        "a pipeline is run to be recorded, and specs are what is recorded",
        "partitioner/models/test_recorded.py",
        ["partitioner.models.pipeline_runs", "partitioner.models.recorded_spec"],
    ),
    (
        "a probe's answers say what a sampler does",
        "partitioner/models/test_sampler_probe.py",
        ["partitioner.models.sampler", "partitioner.models.sampler_answers"],
    ),
    ("it is what the list shows", "partitioner/test_model_list.py", ["partitioner.models.checked"]),
    (
        "the parts of a plan file are read and refused as one file",
        "partitioner/plan/test_plan.py",
        [
            "partitioner.plan.differences",
            "partitioner.plan.fields",
            "partitioner.plan.placement",
            "partitioner.plan.predictor",
            "partitioner.plan.ranks",
            "partitioner.plan.records",
            "partitioner.plan.speedup",
        ],
    ),
    (
        "programs, what they send and what is computed before them follow from one placement",
        "partitioner/plan/test_program.py",
        [
            "partitioner.plan.boundaries",
            "partitioner.plan.build_programs",
            "partitioner.plan.deadlock",
            "partitioner.plan.hoisted",
            "partitioner.plan.preamble",
        ],
    ),
    (
        "what stays together matters where a placement is carried over",
        "partitioner/plan/test_carry_over.py",
        ["partitioner.plan.inseparable"],
    ),
    (
        "the steps of planning are tested by the plans that come of them",
        "partitioner/planning/test_planner.py",
        [
            "partitioner.planning.candidates",
            "partitioner.planning.predicted",
        ],
    ),
    (
        "the choice is between expected qualities",
        "partitioner/planning/test_expected_quality.py",
        ["partitioner.planning.choose"],
    ),
    (
        "measuring components again is what checked costs are made by",
        "tools/measure/test_costs.py",
        ["partitioner.planning.remeasure"],
    ),
    (
        "figures of runs of nodes are compared with evaluate's, in the searches that add them up",
        "partitioner/search/test_chains.py",
        ["partitioner.search.arrays", "partitioner.search.interval_figures", "partitioner.search.intervals"],
    ),
    (
        "nodes that stay together are a property of the problem",
        "partitioner/search/test_problem.py",
        ["partitioner.search.units"],
    ),
    (
        "steps and last resort of the solver, tested through it",
        "partitioner/search/test_solver.py",
        [
            "partitioner.search.attempt",
            "partitioner.search.levels",
            "partitioner.search.local_search",
            "partitioner.search.mode",
            "partitioner.search.split",
        ],
    ),
    (
        "measured errors of edges are compared with real lag, and so is the estimate from the graph",
        "partitioner/staleness/test_measured.py",
        ["partitioner.staleness.edge_errors", "partitioner.staleness.flow"],
    ),
    (
        "they need a GPU",
        "runtime/test_gpu.py",
        [
            "runtime.devices.cuda_shares",
        ],
    ),
    (
        "a device stream is what a mailbox of one works on",
        "runtime/transport/test_stream_mailbox.py",
        ["runtime.devices.stream"],
    ),
    (
        "threads are left behind where they stall",
        "runtime/ranks/test_threads.py",
        ["runtime.ranks.left_behind"],
    ),
    (
        "emulated ranks and threads must give the bits that processes give",
        "runtime/test_engine_transports.py",
        ["runtime.ranks.base", "runtime.ranks.emulated", "runtime.ranks.processes"],
    ),
    (
        "how a rank's process starts and ends is tested with what can go wrong then",
        "runtime/faults/test_start_up.py",
        [
            "runtime.ranks.rank_main",
            "runtime.ranks.rank_messages",
            "runtime.ranks.rank_process",
            "runtime.ranks.supervisor",
        ],
    ),
    (
        "torchrun's agent and driver are two sides of one handshake",
        "runtime/test_torchrun.py",
        [
            "runtime.ranks.remote_agent",
            "runtime.ranks.torchrun_agent",
            "runtime.ranks.torchrun_messages",
            "runtime.ranks.torchrun_store",
        ],
    ),
    (
        "a channel is one pair of a mailbox's ranks",
        "runtime/transport/test_sockets.py",
        ["runtime.transport.socket_channel"],
    ),
    (
        "what processes of one machine send each other is tested by two mailboxes that do",
        "runtime/transport/test_same_machine.py",
        [
            "runtime.transport.channel",
            "runtime.transport.memory",
            "runtime.transport.packets",
            "runtime.transport.payload",
            "runtime.transport.shared_memory",
            "runtime.transport.slots",
        ],
    ),
    ("weights are checked first", "runtime/transport/test_weights.py", ["runtime.transport.in_memory"]),
    (
        "memory of GPUs is shared between processes only",
        "runtime/transport/test_ipc.py",
        ["runtime.transport.cuda_driver"],
    ),
    (
        "a reader copies what lies in memory of the host or of another GPU",
        "runtime/transport/test_staged.py",
        ["runtime.transport.copies"],
    ),
    (
        "which mailbox it is, is seen by engines of both kinds",
        "runtime/test_torchrun.py",
        ["runtime.transport.connect"],
    ),
    (
        "messages are refused in the same words by either mailbox between processes",
        "runtime/faults/test_messages.py",
        ["runtime.transport.checked"],
    ),
    (
        "commands are data, and tested by a worker that obeys them",
        "runtime/worker/test_worker.py",
        ["runtime.worker.commands", "runtime.worker.run_segment"],
    ),
    ("the commands are run on small denoisers", "tools/bench/test_bench.py", ["tools.bench.*"]),
    (
        "cases are run in forked processes, and their command prints how they ended",
        "tools/mutate/test_cases.py",
        ["tools.mutate.forked", "tools.mutate.__main__"],
    ),
    (
        "the denoisers of recorded profiles, traced and compared with these",
        "profiles/test_recorded.py",
        ["tools.denoisers"],
    ),
    ("most of it needs a GPU; its order and limits do not", "tools/gpu_suite/test_gpu_suite.py", ["tools.gpu_suite.*"]),
    ("links and messages are measured in joined processes", "tools/measure/test_messages.py", ["tools.measure.joined"]),
    ("it prints figures of checks", "tools/measure/test_checks.py", ["tools.measure.unchecked_rank"]),
    (
        "their commands go through their parsers, as pages show them",
        "docs/test_commands.py",
        ["tools.measure.__main__", "tools.published.__main__", "tools.subcommands"],
    ),
    ("metrics are tested together", "tools/pictures/test_similarity.py", ["tools.pictures.frechet"]),
    (
        "they are what is trained",
        "tools/train/test_train.py",
        ["tools.pictures.classifier", "tools.pictures.grid", "tools.pictures.pipelines"],
    ),
    ("every recipe is run by the command", "tools/train/test_train.py", ["tools.train.*"]),
    ("a caption's words are tokens", "tools/pictures/test_shapes.py", ["tools.pictures.tokenizers"]),
    (
        "the comparison with published speed-ups is one document",
        "tools/published/test_speedups.py",
        [
            "tools.compare_published",
            "tools.published.fit",
            "tools.published.machine",
            "tools.published.paper",
            "tools.published.speedups_table",
        ],
    ),
    (
        "so is the comparison of splits",
        "tools/published/test_splits.py",
        ["tools.compare_splits", "tools.published.golden", "tools.published.splits_table"],
    ),
    ("the command is run on a small pipeline", "tools/quality/test_quality.py", ["tools.quality.*"]),
    ("so is the command that makes the matrix of features", "tools/features/test_features.py", ["tools.features.*"]),
    (
        "small denoisers are data, and all are made by one test",
        "tools/support/test_denoisers.py",
        [
            "tools.support.image_transformers",
            "tools.support.more_image_transformers",
            "tools.support.more_video_transformers",
            "tools.support.other_transformers",
            "tools.support.unets",
            "tools.support.video_transformers",
        ],
    ),
    (
        "so are small pipelines, and what tries them",
        "tools/support/test_pipelines.py",
        [
            "tools.support.guided_pipelines",
            "tools.support.image_pipelines",
            "tools.support.parts",
            "tools.support.pipeline_tries",
            "tools.support.sdxl_pipelines",
            "tools.support.tiny_pipeline",
            "tools.support.unet_pipelines",
            "tools.support.unet_video_pipelines",
            "tools.support.video_pipelines",
        ],
    ),
    (
        "the command's results and page are read together",
        "tools/support/test_support.py",
        ["tools.support.__main__", "tools.support.results", "tools.support.table"],
    ),
    ("they are run by all tests of pipelines", "runtime/test_pipeline.py", ["tools.small_pipelines"]),
    ("an engine may run two denoisers", "runtime/test_second_denoisers.py", ["runtime.engine_calls"]),
    ("a pipeline is run by its plans", "runtime/test_pipeline.py", ["runtime.live_plans"]),
    ("modular pipelines are measured", "tools/bench/test_guidance.py", ["tools.modular_pipelines"]),
]

MODULES = [module for module, path in FILES.items() if path.name != "__init__.py"]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_tests_of_its_name_or_says_where(module: str) -> None:
    path = FILES[module].relative_to(ROOT)
    if not (ROOT / "tests" / path.with_name(f"test_{path.name}")).exists():
        assert any(fnmatchcase(module, name) for _, _, names in ELSEWHERE for name in names), "add it to ELSEWHERE"


@pytest.mark.parametrize(("why", "where", "names"), ELSEWHERE)
def test_what_is_said_here_is_so(why: str, where: str, names: list[str]) -> None:
    assert (ROOT / "tests" / where).exists(), why
    for name in names:
        assert any(fnmatchcase(module, name) for module in MODULES), f"{name} is no module"


def test_a_module_with_tests_of_its_name_is_not_said_to_be_tested_elsewhere() -> None:
    for _, _, names in ELSEWHERE:
        for name in names:
            if "*" not in name:
                path = FILES[name].relative_to(ROOT)
                assert not (ROOT / "tests" / path.with_name(f"test_{path.name}")).exists(), name
