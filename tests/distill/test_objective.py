"""Each term of the objective against the same number got another way, and where its gradient goes."""

import math

import pytest
import torch

from kvviz import Inspection, StructuralKVLoss
from kvviz.align.alignment import align
from kvviz.config import AlignmentConfig, ConfigError
from kvviz.distill.batch import IGNORED, Collator
from kvviz.distill.config import DistillConfig
from kvviz.distill.data import Example
from kvviz.distill.objective import Objective, cross_entropy, logit_kl
from kvviz.distill.prepare import check_reporters, prepare
from kvviz.errors import ExplainedError
from kvviz.inspection import Prompt, read
from kvviz.pair import load_model
from tests.families import family

FEW = {"calibration_examples": 20, "eval_examples": 4, "device": "cpu"}


def made(**changes):
    return prepare(DistillConfig.parse(FEW | changes))


@pytest.fixture(scope="module")
def fitted():
    return made()


def batch_of(prepared, n=3):
    return prepared.collator([prepared.data.train(i) for i in range(n)])


def test_cross_entropy_is_what_transformers_computes(fitted):
    """The model's own loss, from labels on the tokens themselves, against ours, from labels on the position before."""
    batch = batch_of(fitted)
    terms = fitted.objective(**batch)
    ids, labels = batch["input_ids"], torch.full_like(batch["input_ids"], IGNORED)
    labels[:, 1:] = batch["labels"][:, :-1]
    read = (labels != IGNORED) & batch["attention_mask"].bool()
    assert torch.equal(labels[read], ids[read])
    # The end of the text is predicted but not read, so one token a text is read for this comparison.
    end = fitted.student.tokenizer.eos_token_id
    lengths = batch["attention_mask"].sum(1)
    longer = torch.cat([ids, torch.full((len(ids), 1), 0)], 1)
    mask = torch.cat([batch["attention_mask"], torch.zeros(len(ids), 1, dtype=torch.long)], 1)
    labels = torch.cat([labels, torch.full((len(ids), 1), IGNORED)], 1)
    for row, length in enumerate(lengths):
        longer[row, length] = labels[row, length] = end
        mask[row, length] = 1
    with torch.no_grad():
        output = fitted.student.model(input_ids=longer, attention_mask=mask, labels=labels)
    assert float(terms["ce_loss"]) == pytest.approx(float(output.loss), rel=1e-5)
    assert int(terms["tokens"]) == int((labels != IGNORED).sum())
    assert int(terms["positions"]) == int(lengths.sum())


@pytest.mark.parametrize("mode", ["structured", "flat"])
@pytest.mark.parametrize("target", ["projected", "mixed"])
def test_structural_terms_are_those_of_the_inspector(mode, target):
    """One text through the training path, and through the path that draws the pages."""
    prepared = made(kv_projection_mode=mode, attention_target=target)
    example = prepared.data.train(0)
    terms = prepared.objective(every=True, **prepared.collator([example]))
    config = AlignmentConfig(kv_projection_mode=mode, attention_target=target)
    reading = read(prepared.teacher, prepared.student, Prompt(example.text))
    alignment = align(
        reading.trace_t,
        reading.trace_s,
        prepared.objective.aligner,
        Inspection(reading, config).warp,
        config,
        prepared.objective.key_space,
    )
    student = reading.trace_s
    _, expected = StructuralKVLoss()(
        s_q=student.q,
        s_k=student.k,
        s_v=student.v,
        t_q=alignment.cached("q"),
        t_k=alignment.cached("k"),
        t_v=alignment.cached("v"),
        scaling=student.scaling,
        t_attention=alignment.attention_target(),
    )
    for name in ("k_loss", "v_loss", "attn_loss"):
        assert float(terms[name]) == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.parametrize("term", ["alpha_ce", "alpha_k", "alpha_v", "alpha_attn"])
def test_each_weight_alone_moves_the_student_and_nothing_else(term):
    zero = dict.fromkeys(("alpha_ce", "alpha_k", "alpha_v", "alpha_attn"), 0.0)
    prepared = made(loss_config=zero | {term: 1.0})
    terms = prepared.objective(**batch_of(prepared))
    (terms["loss_tokens"] + terms["loss_positions"]).backward()
    grads = [p.grad for p in prepared.student.model.parameters() if p.grad is not None]
    assert sum(float(grad.abs().sum()) for grad in grads) > 0
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert all(p.grad is None for p in prepared.objective.aligner.parameters())
    assert all(p.grad is None for p in prepared.teacher.model.parameters())
    left_out = {"alpha_ce": "ce_loss", "alpha_k": "k_loss", "alpha_v": "v_loss", "alpha_attn": "attn_loss"}
    for weight, name in left_out.items():
        assert math.isnan(float(terms[name])) == (weight != term)


def test_a_term_moves_the_student_against_itself(fitted):
    """A small step down the gradient lowers the objective by as much as the gradient says."""
    batch = batch_of(fitted)
    parameters = list(fitted.student.model.parameters())
    terms = fitted.objective(**batch)
    before = terms["loss_tokens"] + terms["loss_positions"]
    grads = torch.autograd.grad(before, parameters)
    size = 1e-3 / math.sqrt(sum(float(grad.square().sum()) for grad in grads))
    with torch.no_grad():
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter -= size * grad
        terms = fitted.objective(**batch)
        after = terms["loss_tokens"] + terms["loss_positions"]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter += size * grad
    slope = sum(float(grad.square().sum()) for grad in grads)
    assert float(before - after) == pytest.approx(size * slope, rel=0.05)


@pytest.mark.parametrize("target", ["projected", "mixed"])
def test_a_trained_aligner_gets_gradients_where_a_term_reaches_it(target):
    prepared = made(aligner="trained", init="uniform", attention_target=target, loss_config={"alpha_v": 0.0})
    terms = prepared.objective(**batch_of(prepared))
    (terms["loss_tokens"] + terms["loss_positions"]).backward()
    got = {
        part: any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        for part, module in prepared.objective.aligner.projectors.items()
    }
    assert got == {"q": target == "projected", "k": True, "v": False}


def test_one_forward_a_model_and_step(fitted, monkeypatch):
    calls = {"student": 0, "teacher": 0}
    hooks = [
        side.model.get_decoder().register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls[name] + 1)
        )
        for name, side in (("student", fitted.student), ("teacher", fitted.teacher))
    ]
    fitted.objective(**batch_of(fitted))
    for hook in hooks:
        hook.remove()
    assert calls == {"student": 1, "teacher": 1}


def test_padding_changes_no_term(fitted):
    """A text alone, and beside a longer one: a batch's terms are the means of its texts', weighted by their length."""
    examples = [fitted.data.train(i) for i in range(2)]
    together = fitted.objective(every=True, **fitted.collator(examples))
    alone = [fitted.objective(every=True, **fitted.collator([example])) for example in examples]
    for name, count in (("ce_loss", "tokens"), ("k_loss", "positions"), ("v_loss", "positions")):
        total = sum(float(one[name]) * float(one[count]) for one in alone)
        assert float(together[name]) == pytest.approx(total / float(together[count]), rel=1e-4)


def test_a_pair_of_one_model_has_no_distance_under_the_identity():
    teacher, student = load_model("bundled:student"), load_model("bundled:student")
    config = DistillConfig.parse(
        FEW
        | {"teacher": "bundled:student", "kv_projection_mode": "identity", "loss_config": {"alpha_kd": 1.0}}
    )
    prepared = prepare(config)
    terms = prepared.objective(every=True, **batch_of(prepared))
    for name in ("kd_loss", "k_loss", "v_loss", "attn_loss"):
        assert float(terms[name]) == pytest.approx(0, abs=1e-5), name
    assert teacher.fingerprint == student.fingerprint


@pytest.mark.parametrize(("name", "said"), [("tensorbord", "none of none"), ("neptune", "is not installed")])
def test_metrics_that_can_go_nowhere_are_refused_before_anything_starts(name, said, monkeypatch):
    monkeypatch.setattr("kvviz.distill.prepare.get_available_reporting_integrations", list)
    with pytest.raises(ConfigError, match=said):
        check_reporters(DistillConfig(report_to=f"none, {name}"))


def test_logit_kd_needs_one_tokenizer():
    with pytest.raises(ExplainedError, match="different tokenizers"):
        made(loss_config={"alpha_kd": 1.0})


def test_logit_kl_is_the_mean_over_predicted_tokens():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64), torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[IGNORED, 1, 2, IGNORED, 3], [0, IGNORED, IGNORED, IGNORED, IGNORED]])
    temperature, rows = 2.0, []
    for row, column in (labels != IGNORED).nonzero().tolist():
        p = (teacher[row, column] / temperature).softmax(0)
        q = (student[row, column] / temperature).softmax(0)
        rows.append(sum(float(a * (math.log(a) - math.log(b))) for a, b in zip(p, q, strict=True)))
    expected = temperature**2 * sum(rows) / len(rows)
    assert float(logit_kl(student, teacher, labels, temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(logit_kl(student, student, labels, temperature)) == 0
    assert float(cross_entropy(student, torch.full_like(labels, IGNORED))) == 0


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "opt"])
def test_other_families_train(name):
    """Absolute positions, sliding windows, other layouts: every term finite, with a gradient."""
    teacher, student = family("llama"), family(name)
    config = DistillConfig.parse(FEW | {"init": "uniform", "loss_config": {"alpha_k": 1.0}})
    from kvviz.align.aligner import MapProjectionAligner

    aligner = MapProjectionAligner.from_config(teacher.geometry, student.geometry, config)
    rotary = teacher.rotary is not None and student.rotary is not None
    objective = Objective(student, teacher, aligner, config, "pre_rope" if rotary else "post_rope")
    examples = [Example("1 + 2 =", " 3"), Example("What is left of five after two?", " three are left")]
    batch = Collator(student, teacher, config, 64, True)(examples)
    terms = objective(every=True, **batch)
    total = terms["loss_tokens"] + terms["loss_positions"]
    assert torch.isfinite(total)
    total.backward()
    grads = [p.grad for p in student.model.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)
    student.model.zero_grad()
