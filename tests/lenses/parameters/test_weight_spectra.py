"""The weights lens: singular values held to NumPy's, ranks known in planted weights, nothing found in random ones."""

import json

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.lenses.parameters.weight_spectra import matrices
from algoscope.networks.build import build
from algoscope.networks.matrix_rank import counted_rank, spectrum_of_product
from algoscope.runs.run_folder import Run
from algoscope.subjects.subject import Subject
from algoscope.tasks.digits.addition import Addition

TASK = Addition(n_digits=2)


def random_subject(seed: int = 0, **fields) -> Subject:
    cfg = ModelConfig(d_vocab=14, n_ctx=TASK.n_ctx, init_embed_std=1.0, **({"d_model": 16, "d_mlp": 24} | fields))
    return Subject("random", build(cfg, seed), TASK)


def rows_of(found: ag.Finding) -> dict[str, dict]:
    return {row["matrix"]: row for row in found["matrices"]}


# ---------------------------------------------------------------------- singular values


@pytest.mark.parametrize(("tall", "thin", "wide"), [(40, 6, 30), (12, 12, 12), (5, 9, 7), (30, 30, 4)])
def test_a_products_spectrum_without_the_product_is_that_of_the_product(tall: int, thin: int, wide: int) -> None:
    draw = torch.Generator().manual_seed(0)
    left = torch.randn(3, tall, thin, generator=draw, dtype=torch.float64)
    right = torch.randn(3, thin, wide, generator=draw, dtype=torch.float64)
    found = spectrum_of_product(left, right).numpy()
    plain = np.linalg.svd((left @ right).numpy(), compute_uv=False)
    np.testing.assert_allclose(found, plain[:, : found.shape[1]], rtol=0, atol=1e-10)
    assert np.abs(plain[:, found.shape[1] :]).max(initial=0) < 1e-10


@pytest.mark.parametrize("fields", [{}, {"n_heads": 4, "n_kv_heads": 2}, {"n_heads": 2, "d_head": 24}, {"rank": 3}])
def test_every_circuit_has_the_singular_values_of_its_product(fields: dict) -> None:
    subject = random_subject(**fields).to_dtype(torch.float64)
    cfg, found = subject.cfg, rows_of(ag.lenses.weights(subject))
    for layer in range(cfg.n_layers):
        attn = subject.model.block(layer).attn
        q, k, v, o = (m.weight.numpy() for m in (attn.q, attn.k, attn.v, attn.o))
        for head in range(cfg.n_heads):
            kv = head // (cfg.n_heads // cfg.kv_heads)
            own, shared = (slice(n * attn.d_head, (n + 1) * attn.d_head) for n in (head, kv))
            for part, product in {"QK": q[own].T @ k[shared], "OV": o[:, own] @ v[shared]}.items():
                values = np.linalg.svd(product, compute_uv=False)
                share = values[values > 0] / values.sum()
                row = found[f"L{layer}H{head} {part}"]["after"]
                assert row["norm"] == pytest.approx(np.linalg.norm(product), abs=1e-10)
                assert row["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), abs=1e-6)
                assert row["stable_rank"] == pytest.approx(np.linalg.norm(product) ** 2 / values[0] ** 2, abs=1e-10)
                assert row["rank"] == np.linalg.matrix_rank(product)


def test_every_matrix_of_a_model_is_looked_at() -> None:
    subject = random_subject(n_layers=1, n_heads=2, gated_mlp=True, tied_head=False)
    named = [row["matrix"] for row in ag.lenses.weights(subject)["matrices"] if row["head"] is None]
    block = ["W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out"]
    assert named == ["W_E", "W_pos", *(f"L0 {part}" for part in block), "W_U"]
    seen = sum(matrix.numel() for matrix in matrices(subject.model).values())
    assert seen == sum(p.numel() for p in subject.model.parameters() if p.ndim == 2)


# ---------------------------------------------------------------------- known ranks


def test_planted_circuits_have_the_rank_they_were_given() -> None:
    found = rows_of(ag.lenses.weights("planted:induction"))
    for name in ("L0H1 OV", "L1H0 OV"):  # each copies 26 letters from one stretch into another
        assert found[name]["after"]["rank"] == 26
        assert found[name]["after"]["effective_rank"] == pytest.approx(26)
        assert found[name]["after"]["stable_rank"] == pytest.approx(26)
    assert found["L1H0 QK"]["after"]["rank"] == 27  # 26 letters, and the first position
    idle = [found[f"{head} {part}"]["after"] for head in ("L0H0", "L1H1") for part in ("QK", "OV")]
    assert all(row == {"norm": 0, "effective_rank": 0, "stable_rank": 0, "rank": 0} for row in idle)


@pytest.mark.parametrize("seed", range(3))
def test_random_weights_have_full_rank(seed: int) -> None:
    rows = ag.lenses.weights(random_subject(seed, n_heads=2))["matrices"]
    assert all(row["after"]["rank"] == row["full_rank"] for row in rows)
    assert all(row["full_rank"] == (8 if row["head"] is not None else min(row["shape"])) for row in rows)
    assert min(row["after"]["effective_rank"] / row["full_rank"] for row in rows) > 0.6


def test_rounding_counts_as_no_direction() -> None:
    values = torch.tensor([1.0, 1e-3, 1e-17], dtype=torch.float64)
    assert int(counted_rank(values, 10, torch.float64)) == 2
    assert int(counted_rank(values, 10_000, torch.float32)) == 1
    assert int(counted_rank(torch.zeros(3), 10, torch.float32)) == 0


# ---------------------------------------------------------------------- subjects of every kind


def test_before_and_after_and_the_change_stand_side_by_side(small_run: Run) -> None:
    found = ag.lenses.weights(small_run)
    assert found["effective rank"].axes[0].labels == ("before training", "after training", "change")
    assert found["spectra of circuits"].axes[1].labels == ("before training", "after training")
    first, last = (matrices(small_run.model(step)) for step in (0, small_run.newest_step))
    for name, row in rows_of(found).items():
        assert row["before"] is not None
        if row["head"] is None:
            assert row["change"]["norm"] == pytest.approx(float((last[name] - first[name]).norm()), rel=1e-6)
        else:
            assert row["change"] is None
    assert rows_of(found)["L0 W_O"]["before"]["rank"] == 0  # outputs start at zero


def test_a_file_has_no_before(own_run: Run) -> None:
    path = own_run.path / "checkpoints"
    (path / "config.json").write_text((own_run.path / "config.json").read_text())
    found = ag.lenses.weights(f"file:{sorted(path.glob('*.safetensors'))[-1]}")
    assert found["effective rank"].axes[0].labels == ("after training",)
    assert all(row["before"] is None and row["change"] is None for row in found["matrices"])


def test_spectra_are_drawn_in_shares_and_end_where_a_matrix_ends() -> None:
    panel = ag.lenses.weights(random_subject())["spectra"]
    rows = dict(zip(panel.axis("matrix").labels, panel.values[0], strict=True))
    assert all(row[0] == 1 for row in rows.values())
    assert np.isnan(rows["W_pos"][min(TASK.n_ctx, 16) :]).all()
    assert all((np.diff(row[~np.isnan(row)]) <= 0).all() for row in rows.values())


def test_spectra_of_many_circuits_are_a_heatmap() -> None:
    few, many = (ag.lenses.weights(random_subject(n_heads=n))["spectra of circuits"] for n in (2, 4))
    assert (few.view, many.view) == ("lines", "heatmap")
    np.testing.assert_allclose(many.values[0].shape, (16, 4))


def test_the_command_prints_the_ranks(run) -> None:
    code, out, _ = run("lens", "weights", "planted:reversal", "--json")
    assert code == 0
    assert json.loads(out)["finding"] == "weights"
    code, out, _ = run("lens", "weights", "planted:reversal")
    assert out.startswith("effective rank of the circuits, mean over heads: QK ")
