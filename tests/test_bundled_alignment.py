"""What the fitted maps reach on the bundled pair, on texts nobody fitted to: the order the app makes visible."""

import pytest

from kvviz import AlignmentConfig, Inspection, inspect, load_model
from kvviz.bundled import examples


@pytest.fixture(scope="module")
def inspection() -> Inspection:
    teacher, student = load_model("bundled:teacher"), load_model("bundled:student")
    return inspect(teacher, student, examples()[0].text, AlignmentConfig())


def r2(inspection: Inspection, part: str, **changes) -> float:
    report = inspection.held_out(**changes)
    assert report is not None
    return report.scores[part].total_r2


@pytest.mark.parametrize("part", ["k", "v", "q"])
def test_held_out_order_is_flat_per_head_shared_and_the_price_of_sharing_layers(inspection, part):
    flat = r2(inspection, part, kv_projection_mode="flat")
    per_head = r2(inspection, part, share_dim_proj=False)
    shared = r2(inspection, part)
    over_layers = r2(inspection, part, share_layers=True)
    assert flat > per_head > shared > over_layers > 0


@pytest.mark.parametrize("part", ["k", "v"])
def test_fitted_structured_maps_beat_identity_uniform_and_random(inspection, part):
    fitted = inspection.fit_report.scores[part]
    for changes in ({"kv_projection_mode": "identity"}, {"init": "uniform"}, {"init": "random"}):
        other = inspection.held_out(**changes).scores[part]
        assert fitted.total_error < other.total_error
        assert fitted.total_r2 > other.total_r2


def test_rotated_keys_fit_one_linear_map_worse(inspection):
    """The reason for aligning before rotation: after it, a key depends on its position."""
    teacher, student = load_model("bundled:teacher"), load_model("bundled:student")
    config = AlignmentConfig(kv_projection_mode="flat", key_space="post_rope")
    after = inspect(teacher, student, examples()[0].text, config).fit_report
    assert after.scores["k"].total_r2 < r2(inspection, "k", kv_projection_mode="flat")
