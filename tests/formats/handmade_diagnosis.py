"""Diagnoses and evidence made by hand, whose text and pictures can be foretold."""

from pathlib import Path

import numpy as np

from bnprobe.diagnosis import Diagnosis, Finding
from bnprobe.evidence import Context, Evidence, Fact
from bnprobe.records import Layer
from bnprobe.rules import NotRun, Quantity, Severity

PROOF = dict.fromkeys(("weights", "buffers", "gradients", "modes, flags and hooks", "random streams"), True)
NOT_RUN = (
    NotRun("N08", "batch-leak", "triangle: needs loss="),
    NotRun("N25", "copies-disagree", "copies: needs reference="),
    NotRun("N26", "evaluation-differs", "triangle: needs loss="),
)
CERTIFICATE = (Quantity("loss with running statistics", 0.412, "", 0.4, 0.43), Quantity("largest change", 1e-6, "sd"))


def evidence(names=("stem.bn", "block1.bn", "block2.bn"), labels=True, batches=6):
    """What a diagnosis of a sound model with these batch norms finds."""
    layers = [Layer(name, "BatchNorm2d", "batch_norm", 16, 1e-5, 0.1, observed=True) for name in names]
    random = np.random.default_rng(0)
    facts = [Fact("swap_change", 3e-7, place="output"), Fact("swap_noise", 0.0, place="output")]
    for index, way in enumerate(("stored", "batch", "pooled")):
        mean = 0.4 + 0.05 * index
        if labels:
            facts.append(Fact(f"loss_{way}", mean, place="loss", low=mean - 0.03, high=mean + 0.03))
            losses = mean + 0.05 * random.normal(size=batches)
            facts += [Fact(f"batch_loss_{way}", one, batch=number, place="loss") for number, one in enumerate(losses)]
        elif way != "pooled":
            facts.append(Fact(f"distance_{way}", mean, place="output", low=mean - 0.03, high=mean + 0.03))
    for depth, name in enumerate(names):
        many = 200.0 / (1 + depth)
        facts += [
            Fact("mean_gap", 0.02 * (1 + depth), name, place="input"),
            Fact("variance_gap", 0.03 * (1 + depth), name, place="input"),
            Fact("n_eff_values", many, name, place="input", low=0.7 * many, high=1.4 * many),
        ]
    context = Context(
        given=("val_loader",), batches=batches, samples=64 * batches, labels=labels,
        seconds={"state": 0.25, "triangle": 1.0}, texts={"model": "ResNet"},
    )  # fmt: skip
    return Evidence(facts, layers, context)


def finding(layer="stem.bn", severity=Severity.ERROR, code="N11", **changed):
    """A finding with everything that one can have."""
    said = {
        "code": code,
        "name": "non-finite-statistics",
        "severity": severity,
        "layer": layer,
        "summary": "the loss is 1.3 with the running statistics and 0.4 with statistics pooled over the same batches",
        "effect": Quantity("median gap", 0.8, "standard deviations", 0.7, 0.95),
        "p_value": 2.5e-6,
        "impact": Quantity("more loss", 225.0, "%", 180.0, 260.0),
        "evidence": (Quantity("momentum", 0.1), Quantity("batches seen", 12.0)),
        "remedy": "for m in model.modules():\n    m.reset()",
        "causes": ("buffers were not copied", "other data"),
        "reference": ("Wu & Johnson 2021, arXiv:2105.07576",),
        "follows_from": "",
    }
    return Finding(**(said | changed))


def diagnosis(*findings, not_run=NOT_RUN, certificate=None, proof=None, accepted=(), of=None):
    """A diagnosis of these findings; ``run`` is only a path."""
    made = evidence() if of is None else of
    asked = ("N01", "N02", "N11")
    run = _Path("runs/diagnosis")
    return Diagnosis(findings, not_run, certificate, run, PROOF if proof is None else proof, made, asked, accepted)


class _Path:
    def __init__(self, path):
        self.path = Path(path)
