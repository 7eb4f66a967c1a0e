import json
import math

from diffaudio.training.metrics_log import MetricsLog


def test_the_log_of_a_resumed_run_drops_the_steps_that_are_repeated(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.scalars(step, {"loss": step / 2})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    log = MetricsLog(tmp_path, done=2)
    log.scalars(3, {"loss": 9.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]


def test_the_log_is_valid_json_whatever_the_values_and_the_existing_content(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 0.5}\n[3]\n{"step": 3, "lo')
    with MetricsLog(tmp_path, done=2) as log:
        log.scalars(3, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.1})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": None},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": None, "grad_norm": None, "lr": 0.1},
    ]


def test_the_lowest_value_so_far_is_known_after_resuming(tmp_path):
    with MetricsLog(tmp_path) as log:
        assert log.lowest("held_out_loss") == math.inf
        for step, loss in enumerate((3.0, 1.0, math.nan, 0.5), 1):
            log.scalars(step, {"held_out_loss": loss})
    with MetricsLog(tmp_path, done=3) as log:
        assert log.lowest("held_out_loss") == 1.0
