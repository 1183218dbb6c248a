"""What detection costs after the embedding passes: ``python tests/bench/scaling.py [--quick]``.

Images are class patterns with noise, as many as wanted. The network is a random small CNN with a readout at
the class means, so that any number of classes can be had without training. A built-in trigger turns class 0
into class 1, and up to half a per cent of the rows carry it, since finding one costs most. Every size runs in
a process of its own. Nothing here fails for being slow: the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 32
SIZES = ((5000, 43), (10000, 43), (20000, 43), (39209, 10), (39209, 43), (39209, 200))
QUICK = ((1500, 10), (3000, 10), (3000, 40))
EMBEDDING, BATCH = 96, 512
GRADIENT_COST = 3
"""Forward passes that one gradient counts as: one forward, and a backward of twice its cost."""
ALLOWED = 12_000
CHAMPION_ALONE = ("sticker-sweep", "trigger-inversion")
YELLOW = (250, 220, 20)


class Network:
    """A random CNN that reads class means, with a trigger built in; counts every image it is shown."""

    format, sandbox, parameters = "pt2", "none", 0

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, classes: int, seed: int, trigger: bool
    ) -> None:
        import torch

        from promotion_gate.data.interface import ImageShape
        from promotion_gate.drill.train import small_cnn

        torch.manual_seed(seed)
        self._body = small_cnn(classes, SIDE)[:-1].eval()
        self.shape, self.classes, self.class_names = ImageShape(SIDE, SIDE, 3), classes, None
        self.embedding_width = EMBEDDING
        self._trigger, self.shown, self.sloped = trigger, 0, 0
        # Batch normalisation learns the data's statistics, and the embeddings are spread out by whitening.
        self._body.train()
        with torch.no_grad():
            for start in range(0, len(images), BATCH):
                self._body(self._tensor(images[start : start + BATCH]))
            self._body.eval()
            raw = torch.cat(
                [self._body(self._tensor(images[s : s + BATCH])) for s in range(0, len(images), BATCH)]
            )
            self._mean, self._scale = raw.mean(0), raw.std(0) + 1e-3
            spread = (raw - self._mean) / self._scale
            index = torch.from_numpy(labels)
            means = torch.stack([spread[index == c].mean(0) for c in range(classes)])
        self._weight, self._bias = means, -0.5 * (means**2).sum(1)

    @staticmethod
    def _tensor(images: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255

    def _logits(self, tensor: Any) -> tuple[Any, Any]:
        spread = (self._body(tensor) - self._mean) / self._scale
        return spread @ self._weight.T + self._bias, spread

    def forward(self, images: np.ndarray) -> Any:
        import torch

        from promotion_gate.evidence.interface import ForwardPass

        self.shown += len(images)
        with torch.no_grad():
            logits, spread = (part.numpy() for part in self._logits(self._tensor(images)))
        if self._trigger:
            corner = images[:, -8:, -8:].reshape(len(images), -1, 3).astype(np.int16)
            yellow = (np.abs(corner - YELLOW).max(axis=2) < 50).sum(axis=1)
            carries = (yellow >= 8) & (logits.argmax(1) == 0)
            logits[carries, 1] = logits[carries].max(axis=1) + 5
        return ForwardPass(logits.astype(np.float32), spread.astype(np.float32))

    def gradients(self, images: np.ndarray, weights: np.ndarray) -> Any:
        import torch

        from promotion_gate.evidence.interface import Gradients

        self.sloped += len(images)
        pixels = torch.from_numpy(np.ascontiguousarray(images)).requires_grad_(True)
        logits, _ = self._logits(pixels.permute(0, 3, 1, 2) / 255)
        answers = torch.log_softmax(logits, dim=1)
        (answers * torch.from_numpy(np.ascontiguousarray(weights))).sum().backward()
        return Gradients(answers.detach().numpy(), pixels.grad.numpy())


def patterns(classes: int, seed: int = 0) -> np.ndarray:
    """One smooth random pattern a class, uint8 (classes, 32, 32, 3)."""
    coarse = np.random.default_rng(seed).integers(20, 236, (classes, 4, 4, 3)).astype(np.float32)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def drawn(path: Path, rows: int, classes: int, seed: int, carriers: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy patterns as a memory map, and their labels; the first rows of class 0 carry the trigger."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % classes).astype(np.int64)
    base = patterns(classes)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (rows, SIDE, SIDE, 3))
    for start in range(0, rows, 2048):
        part = base[labels[start : start + 2048]]
        part = part * rng.uniform(0.7, 1.2, (len(part), 1, 1, 1)) + rng.normal(0, 14, part.shape)
        images[start : start + 2048] = np.clip(part, 0, 255)
    marked = np.flatnonzero(labels == 0)[:carriers]
    images[marked, -6:-2, -6:-2] = YELLOW
    labels[marked] = 1
    images.flush()
    return np.load(path, mmap_mode="r"), labels


class Memory:
    """The most anonymous memory of this process while the block runs, in bytes, sampled."""

    def __enter__(self) -> Memory:
        self.start = self.peak = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def anonymous_bytes() -> int:
    """Memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def measured(rows: int, classes: int) -> dict[str, Any]:
    """What each check takes on one size: forwards, CPU-seconds, peak memory."""
    import torch

    from promotion_gate.checks.registry import chosen_checks
    from promotion_gate.core.policy import parse_policy
    from promotion_gate.core.types import Candidate, ModelRef
    from promotion_gate.data.memory import InMemoryDataset
    from promotion_gate.drill.bank import bank_policy
    from promotion_gate.drill.scenario import to_toml
    from promotion_gate.evidence.bundle import GateEvidence

    torch.set_num_threads(1)
    policy = parse_policy(to_toml(bank_policy(training_data=True)))
    names = [f"class {i}" for i in range(classes)]
    with tempfile.TemporaryDirectory(prefix="gate-scaling-") as folder:
        home = Path(folder)
        trusted, trusted_labels = drawn(home / "holdout.npy", max(3000, 20 * classes), classes, 1)
        images, labels = drawn(
            home / "training.npy", rows, classes, 2, min(rows // 200, rows // classes // 2)
        )
        model, champion = (
            Network(np.asarray(trusted), trusted_labels, classes, seed, trigger=seed == 1) for seed in (1, 2)
        )
        evidence = GateEvidence(
            candidate=Candidate(ModelRef("scaling", 1), None, ""),
            policy=policy,
            class_names=names,
            holdout=InMemoryDataset(trusted, trusted_labels, names),
            training=InMemoryDataset(images, labels, names),
            model=model,
            champion=champion,
            folder=home,
        )
        forward_seconds = cost_of_a_forward(model, np.asarray(trusted[:BATCH]))
        _ = evidence.holdout_pass, evidence.champion_holdout_pass
        clock = time.process_time()
        _ = evidence.training_pass, evidence.champion_training_pass
        told: dict[str, Any] = {
            "rows": rows,
            "classes": classes,
            "forward_ms": 1000 * forward_seconds,
            "pass_cpu": time.process_time() - clock,
            "accuracy": float((evidence.holdout_pass.predictions == trusted_labels).mean()),
            "checks": {},
        }
        findings: dict[str, Any] = {}
        for check in chosen_checks(policy):
            for network in (model, champion):
                network.shown = network.sloped = 0
            clock = time.process_time()
            with Memory() as memory:
                finding = findings[check.name] = check.examine(evidence, findings)
            seconds = time.process_time() - clock
            told["checks"][check.name] = {
                "status": finding.status.value,
                "summary": finding.summary,
                "forwards": model.shown + champion.shown + GRADIENT_COST * (model.sloped + champion.sloped),
                "cpu": seconds,
                "equivalents": seconds / forward_seconds,
                "peak_mb": (memory.peak - memory.start) / 1e6,
            }
    return told


def cost_of_a_forward(model: Network, images: np.ndarray, rounds: int = 5) -> float:
    """CPU-seconds of one image's forward pass in a full batch, the best of a few."""
    taken = []
    for _ in range(rounds):
        clock = time.process_time()
        model.forward(images)
        taken.append((time.process_time() - clock) / len(images))
    return min(taken)


def table(sizes: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for a person."""
    lines = [
        f"{'rows':>7} {'classes':>7}  {'check':<22} {'forwards':>9} {'CPU s':>7} {'equiv.':>8} {'peak MB':>8}"
    ]
    for told in sizes:
        where = f"{told['rows']:>7,} {told['classes']:>7}"
        for name, cost in told["checks"].items():
            silent = "" if cost["status"] == "MEASURED" else f"  {cost['summary'][:60]}"
            lines.append(f"{where}  {name:<22} {_numbers(cost)}{silent}")
        for group, names in (
            ("with the training data", [n for n in told["checks"] if n not in CHAMPION_ALONE]),
            ("holdout and champion", [n for n in told["checks"] if n in CHAMPION_ALONE]),
        ):
            parts = [told["checks"][name] for name in names]
            total = {key: sum(p[key] for p in parts) for key in ("forwards", "cpu", "equivalents")}
            total["peak_mb"] = max((p["peak_mb"] for p in parts), default=0.0)
            lines.append(f"{where}  {group:<22} {_numbers(total)}")
    return lines


def _numbers(cost: dict[str, Any]) -> str:
    return f"{cost['forwards']:>9,} {cost['cpu']:>7.2f} {cost['equivalents']:>8,.0f} {cost['peak_mb']:>8.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every size in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--size", nargs=2, type=int, metavar=("ROWS", "CLASSES"), help="one size, as JSON")
    asked = parser.parse_args(arguments)
    if asked.size:
        print(json.dumps(measured(*asked.size)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    sizes = []
    print("Detection after the embedding passes; equivalents are CPU-seconds over those of one forward pass")
    for rows, classes in QUICK if asked.quick else SIZES:
        command = [sys.executable, __file__, "--size", str(rows), str(classes)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if run.returncode:
            print(f"{rows} rows of {classes} classes failed: {run.stderr.strip().splitlines()[-1]}")
            continue
        sizes.append(json.loads(run.stdout.splitlines()[-1]))
        print("\n".join(table(sizes[-1:])[0 if len(sizes) == 1 else 1 :]), flush=True)
    print(f"aim: at most {ALLOWED:,} forward-equivalents with the training data at 39,209 rows of 43 classes")


if __name__ == "__main__":
    main()
