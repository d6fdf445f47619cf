# SPDX-License-Identifier: Apache-2.0
"""The Wan presets beside diffusers' own Wan 2.1: names and shapes, equal outputs, the VAE, what loading refuses."""

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_shards import many, write

from rays_as_pixels_model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from rays_as_pixels_model.config import (
    PRESETS,
    ConfigError,
    ModelConfig,
    WanCodecConfig,
    WanTransformerConfig,
    preset,
)
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.layout import Layout
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_model.wan import WanJointTransformer, latent_time, wan_positions
from rays_as_pixels_model.wan_weights import load_wan, our_name, wan_parameters
from rays_as_pixels_training import cache, fit_codec
from rays_as_pixels_training.config import RunConfig, TrainConfig
from rays_as_pixels_training.data.clips import ClipCut
from rays_as_pixels_training.data.latents import LatentEncoder, codec_name
from rays_as_pixels_training.data.source import PoolSource
from rays_as_pixels_training.data.windows import cut_windows
from rays_as_pixels_training.loop import Trainer

diffusers = pytest.importorskip("diffusers", reason="needs the extra wan")

SMALL = ModelConfig(
    "wan-test",
    frames=5,
    height=64,
    width=96,
    codec=WanCodecConfig(base=8, blocks=1),
    transformer=WanTransformerConfig(
        width=64, depth=2, heads=2, ffn_width=96, text_width=24, text_tokens=6, time_features=32
    ),
)
# How the original release names what diffusers names; its norm3 is diffusers' norm2.
ORIGINAL = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_out.0": "o",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "proj_out": "head.head",
}


def theirs(config=SMALL):
    """diffusers' Wan transformer of a config, with random weights."""
    c = config.transformer
    return diffusers.WanTransformer3DModel(
        num_attention_heads=c.heads,
        attention_head_dim=c.width // c.heads,
        text_dim=c.text_width,
        freq_dim=c.time_features,
        ffn_dim=c.ffn_width,
        num_layers=c.depth,
    )


def original_layout(state):
    """Rename diffusers' tensors to the names of the original release."""
    out = {}
    for name, tensor in state.items():
        if name == "scale_shift_table":
            out["head.modulation"] = tensor
            continue
        for diffusers_part, original in ORIGINAL.items():
            name = name.replace(diffusers_part, original)
        out[name.replace("scale_shift_table", "modulation")] = tensor
    return out


@pytest.fixture(scope="module")
def wan():
    """A small Wan of diffusers and its VAE, every parameter random."""
    torch.manual_seed(0)
    transformer = theirs().eval()
    vae = diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1).eval()
    with torch.no_grad():
        for p in transformer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return transformer, vae


@pytest.fixture(scope="module")
def folder(wan, tmp_path_factory):
    """The two on disk as diffusers writes them, the transformer in shards."""
    path = tmp_path_factory.mktemp("wan")
    wan[0].save_pretrained(path / "transformer", max_shard_size="100KB")
    wan[1].save_pretrained(path / "vae")
    assert len(list((path / "transformer").glob("*.safetensors"))) > 2
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_wan(SMALL, folder)


def draw(model, seed=0, batch=2, groups=(1, 4)):
    generator = torch.Generator().manual_seed(seed)
    z, r = (torch.randn(s, generator=generator) for s in model.latent_shapes(batch, groups))
    t_z, t_r = (torch.rand(x.shape[:2], generator=generator) for x in (z, r))
    return z, r, t_z, t_r, torch.zeros(batch, dtype=torch.int64), groups


def their_velocity(transformer, z, t_z, prompt):
    """What diffusers' model says of our latents (B, L, h, w, C) at our times (B, L), in our sign."""
    tokens = (z.shape[2] // 2) * (z.shape[3] // 2)
    with torch.no_grad():
        out = transformer(
            z.permute(0, 4, 1, 2, 3), (1000 * (1 - t_z)).repeat_interleave(tokens, 1), prompt, return_dict=False
        )[0]
    return -out.permute(0, 2, 3, 4, 1)


@pytest.mark.parametrize("name", ["wan-1.3b", pytest.param("wan-14b", marks=pytest.mark.slow)])
def test_every_tensor_of_wan_maps_shape_for_shape(name):
    config = preset(name)
    with torch.device("meta"):
        ours, wan = WanJointTransformer(config), theirs(config)
    wanted = {k: tuple(p.shape) for k, p in wan_parameters(ours).items()}
    for state in (wan.state_dict(), original_layout(wan.state_dict())):
        assert {our_name(k): tuple(v.shape) for k, v in state.items()} == wanted
    counts = [sum(p.numel() for p in x) for x in (wan.parameters(), ours.parameters())]
    assert counts[0] == sum(p.numel() for p in wan_parameters(ours).values())
    if name == "wan-14b":
        assert abs(counts[0] / 14e9 - 1) < 0.05
        assert abs((counts[1] - counts[0]) / 6e9 - 1) < 0.05
        assert abs(counts[1] / 20e9 - 1) < 0.05


@torch.no_grad()
def test_with_the_rays_off_the_video_stream_is_wan(model, wan):
    z, _, t_z, _, _, groups = draw(model)
    prompt = torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(3))
    ours, nothing = model.transformer(z, None, t_z, None, None, groups, prompt)
    padded = torch.nn.functional.pad(prompt, (0, 0, 0, 2))
    expected = their_velocity(wan[0], z, t_z, padded)
    assert nothing is None and expected.std() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    empty, _ = model.transformer(z, None, t_z, None, None, groups)
    torch.testing.assert_close(empty, their_velocity(wan[0], z, t_z, torch.zeros(2, 6, 24)), atol=1e-4, rtol=1e-4)
    assert (empty - ours).abs().max() > 1e-3  # the prompt counts


@torch.no_grad()
def test_a_freshly_loaded_model_gives_wans_video_beside_its_rays(model, wan):
    z, r, t_z, t_r, reference, groups = draw(model, 1)
    v_z, v_r = model(z, r, t_z, t_r, reference, groups)
    torch.testing.assert_close(v_z, their_velocity(wan[0], z, t_z, torch.zeros(2, 6, 24)), atol=1e-4, rtol=1e-4)
    assert v_r.shape == r.shape and torch.isfinite(v_r).all()


@torch.no_grad()
def test_bfloat16_weights_take_and_give_float32(model, folder):
    half = load_wan(SMALL, folder, dtype=torch.bfloat16)
    assert half.transformer.z.head.weight.dtype == torch.bfloat16
    args = draw(model, 5)
    for a, b in zip(model(*args), half(*args), strict=True):
        assert b.dtype == torch.float32 and (a - b).std() < 0.03 * a.std()


@torch.no_grad()
def test_the_ray_stream_starts_as_a_copy(model):
    """Rays in the place of a one-frame video, without the other step, move as that video would."""
    z, _, t_z, _, _, _ = draw(model, 2, groups=(1,))
    swapped = load_state(WanJointTransformer(SMALL), model.transformer.state_dict(), swap=True)
    args = None, t_z, None, None, (1,)
    torch.testing.assert_close(swapped(z, *args), model.transformer(z, *args))


def load_state(transformer, state, swap=False):
    def other(name):
        if name.startswith(("z.", "r.")):
            return "zr"[name[0] == "z"] + name[1:]
        return name.replace(".z.", ".?.").replace(".r.", ".z.").replace(".?.", ".r.")

    transformer.load_state_dict({other(k) if swap else k: v for k, v in state.items()})
    return transformer


@torch.no_grad()
def test_the_original_layout_loads_to_the_same_model(model, wan, folder, tmp_path):
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    state = original_layout(wan[0].state_dict())
    back = convert_wan_transformer_to_diffusers(dict(state))  # diffusers agrees that this is the original layout
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in wan[0].state_dict().items()}
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({k: state[k].contiguous() for k in part}, tmp_path / file)
    weight_map = {k: file for file, part in shards.items() for k in part}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    other = load_wan(SMALL, tmp_path, vae=folder / "vae")
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    weight_map[names[0]] = "../a.safetensors"
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="'../a.safetensors', which may lie outside"):
        load_wan(SMALL, tmp_path, vae=folder / "vae")


@torch.no_grad()
def test_the_vae_adapter_normalises_as_wans_pipeline_does(model, wan):
    frames = torch.rand(2, 5, 32, 32, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = wan[1]
    mean, std = (torch.tensor(x) for x in (vae.config.latents_mean, vae.config.latents_std))
    raw = vae.encode(frames.permute(0, 4, 1, 2, 3)).latent_dist.mode().permute(0, 2, 3, 4, 1)
    z = model.encode_frames(frames, (1, 4))
    torch.testing.assert_close(z, (raw - mean) / std, atol=1e-4, rtol=1e-4)
    pixels = vae.decode((z * std + mean).permute(0, 4, 1, 2, 3)).sample.permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(model.decode_frames(z, (1, 4)), pixels, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_images_and_raxels_pass_through_the_vae_one_by_one(model):
    frames = torch.rand(1, 7, 32, 32, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    z = model.encode_frames(frames, Layout.window(2, 5))
    assert z.shape == (1, 4, 4, 4, 16)
    torch.testing.assert_close(z[:, 1:2], model.encode_frames(frames[:, 1:2], (1,)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z[:, 2:], model.encode_frames(frames[:, 2:], (1, 4)), atol=1e-4, rtol=1e-4)
    assert model.decode_frames(z, (1, 1, 1, 4)).shape == frames.shape
    r = model.encode_rays(frames)
    assert r.shape == (1, 7, 4, 4, 16)  # no compression in time
    torch.testing.assert_close(r[:, 3:4], model.encode_rays(frames[:, 3:4]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(r[:, :1], model.encode_frames(frames[:, :1] * 0.5, (1,)), atol=1e-4, rtol=1e-4)
    assert model.decode_rays(r).shape == frames.shape and model.decode_rays(r).abs().max() <= 2


def test_ray_tokens_sit_about_their_video_tokens():
    z, r = wan_positions(Layout((1, 4, 4)), 4, 6)
    assert z[::24, 0].tolist() == [0, 1, 2] and z[:24, 1:].max(0).values.tolist() == [3, 5]
    times = r[::6, 0]
    assert times[0] == 0 and times[1:5].mean() == 1 and times[5:].mean() == 2
    covered = z[:24][(z[:24, 1] < 2) & (z[:24, 2] < 2)]
    torch.testing.assert_close(covered[:, 1:].mean(0), r[0, 1:])
    source = wan_positions(Layout.window(1, 5, image_times=[3.0]), 2, 2)
    assert source[0][0, 0] == source[1][0, 0] == latent_time(torch.tensor(3.0)) == source[1][4, 0]


@pytest.mark.parametrize("switches", [{}, {"attention": "joint"}, {"projections": "separate"},
                                      {"camera_encoding": "pluecker"}], ids=str)  # fmt: skip
def test_switches_train_end_to_end(switches, folder):
    config = SMALL.switched(**switches)
    assert ModelConfig.from_dict(config.to_dict()) == config
    model = load_wan(config, folder)
    with torch.no_grad():
        for name, p in model.transformer.named_parameters():
            if name.endswith("cross_modulation"):
                p.add_(0.1)
    z, r, t_z, t_r, reference, groups = draw(model)
    prompt = torch.randn(2, 3, 24)
    v_z, v_r = model(z, r, t_z, t_r, reference, groups, prompt)
    (v_z.square().mean() + v_r.square().mean()).backward()
    assert not [n for n, p in model.transformer.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(p.grad is None for p in model.codec.parameters())
    with torch.no_grad():
        assert (model(z + 1, r, t_z, t_r, reference, groups, prompt)[1] - v_r).abs().max() > 1e-5
        assert (model(z, r + 1, t_z, t_r, reference, groups, prompt)[0] - v_z).abs().max() > 1e-5


@torch.no_grad()
def test_padding_changes_nothing(model):
    z, r, t_z, t_r, reference, groups = draw(model, 4, groups=(1, 1, 4))
    exists = torch.tensor([[True] * 6, [False] + [True] * 5])
    layout = Layout(groups, Layout.window(1, 5).frame_times(), exists)
    base = model(z, r, t_z, t_r, reference + 1, layout)
    for x in (z, r, t_z, t_r):
        x[1, 0] = float("nan")
    assert all(torch.equal(a, b) for a, b in zip(base, model(z, r, t_z, t_r, reference + 1, layout), strict=True))
    alone = model(z[1:, 1:], r[1:, 1:], t_z[1:, 1:], t_r[1:, 1:], reference[:1], (1, 4))
    torch.testing.assert_close(base[0][1:, 1:], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(base[1][1:, 1:], alone[1], atol=1e-5, rtol=1e-5)


def test_the_pipeline_and_a_checkpoint_take_a_wan_model(model, tmp_path):
    save_checkpoint(tmp_path / "saved", model, "card")
    again = load_checkpoint(tmp_path / "saved", preset="wan-test")
    decoded = [
        Pipeline(m).estimate_batch(torch.zeros(1, 5, 64, 96, 3), None, 0, 1, torch.Generator().manual_seed(0))
        for m in (model, again)
    ]
    assert decoded[0].shape == (1, 5, 32, 48, 3) and torch.equal(*decoded)


@pytest.mark.slow
def test_training_fits_the_ray_statistics_of_an_imported_checkpoint(model, folder, tmp_path, pool, monkeypatch, capsys):
    """They come with no Wan; whoever trains from one, on frames or on latents, must end up with fitted ones."""
    monkeypatch.setitem(PRESETS, SMALL.preset, SMALL)
    monkeypatch.setattr(fit_codec, "_WAN_LEAST", 8)
    monkeypatch.setattr(fit_codec, "_WAN_IMAGES", 40)
    start = save_checkpoint(tmp_path / "start", load_wan(SMALL, folder, dtype=torch.bfloat16), "card")
    assert not load_checkpoint(start).normaliser.rays_fitted
    config = TrainConfig(preset=SMALL.preset, batch=2, steps=2, warmup=0, precision="float32", lr=1e-4)
    run = RunConfig(tmp_path / "run", init=start, eval_every=0, pictures_every=0, tensorboard=False)
    trainer = Trainer(config, run, PoolSource(pool))
    assert trainer.run()
    fitted = trainer.learner.model
    rays = fitted.encode_rays(cut_windows(pool, np.arange(6), np.random.default_rng(0), 5).raxels())
    mean = rays.mean((2, 3))
    assert mean.std() == pytest.approx(1, abs=0.6) and (rays - mean[:, :, None, None]).std() == pytest.approx(
        1, abs=0.6
    )
    assert all(torch.equal(a, b) for a, b in zip(fitted.codec.parameters(), model.codec.parameters(), strict=True))
    trainer.export(tmp_path / "trained", "card")
    statistics = load_checkpoint(tmp_path / "trained").normaliser.state_dict()
    again = Trainer(config, RunConfig(tmp_path / "again", init=tmp_path / "trained"), PoolSource(pool))
    for name, value in again.learner.model.normaliser.state_dict().items():
        assert torch.equal(value, statistics[name]), "what is fitted is kept"

    write(tmp_path / "frames", many(2), cut=ClipCut(5, 96, 64, step=1))
    make_latents = ["--data", "procedural", "--option", "clips=1", "--store", "latents", "--out", str(tmp_path / "z")]
    assert cache.main([*make_latents, "--checkpoint", str(start)]) == 2
    assert "has no statistics of ray latents yet" in capsys.readouterr().err
    command = [str(start), "--data", str(tmp_path / "frames"), "--out", str(tmp_path / "fitted")]
    assert fit_codec.main(command) == 0
    half = load_checkpoint(tmp_path / "fitted")
    assert half.normaliser.rays_fitted and half.transformer.blocks[0].z.feed_forward[0].weight.dtype == torch.bfloat16
    assert LatentEncoder(tmp_path / "fitted").facts["codec"] == codec_name(half)
    command[0] = command[-1]
    assert fit_codec.main(command) == 1 and "is fitted already" in capsys.readouterr().err
    command[0], command[2] = str(start), str(start)
    assert fit_codec.main(command) == 1 and "holds no shards.json" in capsys.readouterr().err


def test_a_checkpoint_keeps_the_dtypes_of_its_file(folder, tmp_path):
    half = load_wan(SMALL, folder, dtype=torch.bfloat16)
    again = load_checkpoint(save_checkpoint(tmp_path / "half", half, "card"))
    state = half.state_dict()
    assert {k: v.dtype for k, v in again.state_dict().items()} == {k: v.dtype for k, v in state.items()}
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())
    assert {v.dtype for v in state.values()} == {torch.bfloat16, torch.float32}  # the VAE stays as it was
    trained = {k: p.requires_grad for k, p in half.named_parameters()}
    assert {k: p.requires_grad for k, p in again.named_parameters()} == trained and len(set(trained.values())) == 2
    assert not any(x.is_meta for x in [*again.parameters(), *again.buffers()])


def test_what_cannot_be_loaded_is_named(folder, wan, tmp_path, monkeypatch):
    state = {k: v.contiguous() for k, v in wan[0].state_dict().items()}
    with pytest.raises(CheckpointError, match="no .safetensors"):
        load_wan(SMALL, tmp_path)
    (tmp_path / "model.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="pickles"):
        load_wan(SMALL, tmp_path)
    save_file({**state, "blocks.0.attn2.add_k_proj.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="add_k_proj"):
        load_wan(SMALL, tmp_path)
    save_file({k: v for k, v in state.items() if k != "proj_out.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="z.head.bias"):
        load_wan(SMALL, tmp_path)
    wider = dataclasses.replace(SMALL, transformer=dataclasses.replace(SMALL.transformer, ffn_width=128))
    with pytest.raises(CheckpointError, match=r"\(128,.*wan-test|wan-test.*\(128"):
        load_wan(wider, folder)
    with pytest.raises(ConfigError, match="needs a Wan preset.*'micro'"):
        load_wan(preset("micro"), folder)
    shutil.copytree(folder / "vae", tmp_path / "vae")
    about, good = tmp_path / "vae" / "config.json", json.loads((folder / "vae" / "config.json").read_text())
    for facts, words in (
        ("{", "is not a config of the Wan VAE"),
        (json.dumps({**good, "latents_mean": "x"}), "is not a config of the Wan VAE"),
        (json.dumps({**good, "latents_mean": good["latents_mean"][:3]}), "latents_mean must be 16 finite"),
        (json.dumps({**good, "latents_std": [0.0] * 16}), "latents_std must be 16 finite numbers, deviations above 0"),
    ):
        about.write_text(facts)
        with pytest.raises(CheckpointError, match=words):
            load_wan(SMALL, folder, vae=tmp_path / "vae")
    with pytest.raises(ConfigError, match="ray_scale must be a positive, finite number, got nan"):
        dataclasses.replace(SMALL.codec, ray_scale=float("nan"))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="truncated"):
        load_wan(SMALL, tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"rays_as_pixels_ros\[wan\]"):
        RaysAsPixels(SMALL)


def test_prompts_that_do_not_fit_are_named(model):
    z, r, t_z, t_r, reference, groups = draw(model)
    with pytest.raises(ValueError, match="at most 6, 24"):
        model(z, r, t_z, t_r, reference, groups, torch.zeros(2, 7, 24))
    micro = RaysAsPixels(preset("micro"))
    with pytest.raises(ValueError, match="takes no prompt"):
        micro(z, r, t_z, t_r, reference, groups, torch.zeros(2, 1, 24))
    with pytest.raises(ConfigError, match="goes with the Wan codec"):
        dataclasses.replace(preset("micro"), codec=WanCodecConfig())
