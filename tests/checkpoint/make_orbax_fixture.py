"""Writes tests/data/orbax_tiny: the golden's weights as openpi's JAX trainer would have saved them.

The fixture is made once, by Orbax itself, and committed; the tests need neither Orbax nor JAX. It
was made with orbax-checkpoint 0.12.8 and jax 0.10.2, in an environment of its own:

    python -m venv /tmp/orbax && /tmp/orbax/bin/pip install orbax-checkpoint jax safetensors
    /tmp/orbax/bin/python tests/checkpoint/make_orbax_fixture.py tests/data/golden_tiny.safetensors \
        tests/data/orbax_tiny

It takes torch names to JAX leaves, the inverse of what export/checkpoint/orbax.py does, and is
written apart from that module's table on purpose: one mistake cannot hide in both. Every path ends
in "value", as openpi's trainer leaves it (its released checkpoints have no such suffix).
"""

import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import load_file

PALIGEMMA = "w.paligemma_with_expert.paligemma"
VISION = f"{PALIGEMMA}.model.vision_tower.vision_model"
LANGUAGE = f"{PALIGEMMA}.model.language_model"
EXPERT = "w.paligemma_with_expert.gemma_expert.model"
VISION_DEPTH, VISION_HEADS, LLM_DEPTH, HEADS = 2, 4, 3, 8


def jax_leaves(w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The 51 leaves of a pi0.5 by path, from weights `w` under openpi's PyTorch names."""
    leaves: dict[str, np.ndarray] = {}

    def linear(leaf: str, *names: str) -> None:
        """Kernel [in, out] and bias of one linear layer, or of one a layer, stacked."""
        kernels, biases = ([w[f"{n}.{part}"].T for n in names] for part in ("weight", "bias"))
        leaves[f"{leaf}/kernel"] = kernels[0] if len(names) == 1 else np.stack(kernels)
        leaves[f"{leaf}/bias"] = biases[0] if len(names) == 1 else np.stack(biases)

    img, encoder = "PaliGemma/img", "PaliGemma/img/Transformer"
    leaves[f"{img}/embedding/kernel"] = w[f"{VISION}.embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0)
    leaves[f"{img}/embedding/bias"] = w[f"{VISION}.embeddings.patch_embedding.bias"]
    leaves[f"{img}/pos_embedding"] = w[f"{VISION}.embeddings.position_embedding.weight"][None]
    leaves[f"{encoder}/encoder_norm/scale"] = w[f"{VISION}.post_layernorm.weight"]
    leaves[f"{encoder}/encoder_norm/bias"] = w[f"{VISION}.post_layernorm.bias"]
    linear(f"{img}/head", f"{PALIGEMMA}.model.multi_modal_projector.linear")

    layers = [f"{VISION}.encoder.layers.{i}" for i in range(VISION_DEPTH)]
    block = f"{encoder}/encoderblock"
    for n in (0, 1):
        for jax_name, name in (("scale", "weight"), ("bias", "bias")):
            stacked = np.stack([w[f"{layer}.layer_norm{n + 1}.{name}"] for layer in layers])
            leaves[f"{block}/LayerNorm_{n}/{jax_name}"] = stacked
        linear(f"{block}/MlpBlock_0/Dense_{n}", *[f"{layer}.mlp.fc{n + 1}" for layer in layers])
    attention = f"{block}/MultiHeadDotProductAttention_0"
    for jax_name, name in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
        linear(f"{attention}/{jax_name}", *[f"{layer}.self_attn.{name}_proj" for layer in layers])
    width = leaves[f"{block}/LayerNorm_0/scale"].shape[1]
    heads = (VISION_HEADS, width // VISION_HEADS)
    for name in ("query", "key", "value"):
        for part, shape in (("kernel", (width, *heads)), ("bias", heads)):
            path = f"{attention}/{name}/{part}"
            leaves[path] = leaves[path].reshape(VISION_DEPTH, *shape)
    leaves[f"{attention}/out/kernel"] = leaves[f"{attention}/out/kernel"].reshape(VISION_DEPTH, *heads, width)

    llm = "PaliGemma/llm/layers"
    leaves["PaliGemma/llm/embedder/input_embedding"] = w[f"{PALIGEMMA}.lm_head.weight"]
    for root, suffix in ((LANGUAGE, ""), (EXPERT, "_1")):

        def stack(name: str, root: str = root) -> np.ndarray:
            return np.stack([w[f"{root}.layers.{i}.{name}.weight"] for i in range(LLM_DEPTH)])

        query, out = stack("self_attn.q_proj"), stack("self_attn.o_proj")
        pair = np.stack([stack("self_attn.k_proj"), stack("self_attn.v_proj")], axis=1)
        gating = np.stack([stack("mlp.gate_proj"), stack("mlp.up_proj")], axis=1)
        by_head = query.reshape(LLM_DEPTH, HEADS, -1, query.shape[2])
        leaves[f"{llm}/attn/q_einsum{suffix}/w"] = np.einsum("lnhd->lndh", by_head)
        leaves[f"{llm}/attn/kv_einsum{suffix}/w"] = np.einsum("lchd->lcdh", pair)[:, :, None]
        by_head = out.reshape(LLM_DEPTH, out.shape[1], HEADS, -1)
        leaves[f"{llm}/attn/attn_vec_einsum{suffix}/w"] = np.einsum("ldnh->lnhd", by_head)
        leaves[f"{llm}/mlp{suffix}/gating_einsum"] = np.einsum("lcmd->lcdm", gating)
        leaves[f"{llm}/mlp{suffix}/linear"] = np.einsum("ldm->lmd", stack("mlp.down_proj"))
    norms = (("pre_attention_norm", "input_layernorm"), ("pre_ffw_norm", "post_attention_layernorm"))
    for jax_name, name in norms:
        scales = [w[f"{LANGUAGE}.layers.{i}.{name}.weight"] for i in range(LLM_DEPTH)]
        leaves[f"{llm}/{jax_name}/scale"] = np.stack(scales)
        dense = [f"{EXPERT}.layers.{i}.{name}.dense" for i in range(LLM_DEPTH)]
        linear(f"{llm}/{jax_name}_1/Dense_0", *dense)
    leaves["PaliGemma/llm/final_norm/scale"] = w[f"{LANGUAGE}.norm.weight"]
    linear("PaliGemma/llm/final_norm_1/Dense_0", f"{EXPERT}.norm.dense")
    for name in ("action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out"):
        linear(name, f"w.{name}")
    return leaves


def tree(leaves: dict[str, np.ndarray]) -> dict:
    """The nested tree that Orbax is given: {"params": {...: {"value": array}}}."""
    root: dict = {}
    for path, array in leaves.items():
        node = root
        for key in ("params", *path.split("/")):
            node = node.setdefault(key, {})
        node["value"] = jax.numpy.asarray(np.ascontiguousarray(array))
    return root


if __name__ == "__main__":
    golden, directory = (Path(argument).resolve() for argument in sys.argv[1:3])
    weights = tree(jax_leaves(load_file(golden)))
    ocp.PyTreeCheckpointer().save(directory / "params", weights)
    # Nothing reads this file, and it names the directory that it was written to.
    (directory / "params" / "commit_success.txt").unlink(missing_ok=True)
