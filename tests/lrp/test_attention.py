"""Attention and norms: the weights are constants, the scale is a constant; the rest is linear."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xaicourse import lrp

from .networks import Functional, agree, everywhere, explained_as, gradient_x_input, secant

LRP0 = everywhere(lrp.Epsilon(0))
TOKENS, WIDTH, HEADS = 5, 8, 2
CAUSAL = torch.triu(torch.ones(TOKENS, TOKENS, dtype=torch.bool), 1)
BIAS = torch.randn(TOKENS, TOKENS, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
PADDED = torch.tensor([[False] * 5, [False, False, False, True, True]])


def tokens(*shape: int, seed: int = 0) -> Tensor:
    shape = shape or (2, TOKENS, WIDTH)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomly(module: nn.Module, seed: int = 0) -> nn.Module:
    """No parameter is zero or one: PyTorch begins with biases of 0 and norms of 1."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(
                torch.randn(p.shape, generator=generator, dtype=torch.float64)
                / (p.shape[-1] ** 0.5 if p.dim() > 1 else 2)
            )
    return module


# by hand ------------------------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | float = 0.0) -> Tensor:
    """softmax(q k^T) v for (…, T, C), the weights detached."""
    return F.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + mask, -1).detach() @ v


def as_bias(mask: Tensor) -> Tensor:
    return (
        torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask
    )


def multi_head(m: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | float = 0.0) -> Tensor:
    """nn.MultiheadAttention by definition; all (N, T, C)."""
    if m.in_proj_weight is not None:
        w = m.in_proj_weight.chunk(3)
    else:
        w = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
    b = (0, 0, 0) if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
    q, k, v = (t @ weight.T + bias for t, weight, bias in zip((q, k, v), w, b, strict=True))
    if m.bias_k is not None:
        k, v = (torch.cat([t, one.expand(len(t), 1, -1)], 1) for t, one in ((k, m.bias_k), (v, m.bias_v)))
        mask = F.pad(mask, (0, 1)) if isinstance(mask, Tensor) else mask
    if m.add_zero_attn:
        k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
        mask = F.pad(mask, (0, 1)) if isinstance(mask, Tensor) else mask
    q, k, v = (t.unflatten(-1, (m.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    return m.out_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


def normed(t: Tensor, axes: tuple[int, ...], eps: float = 1e-5, centre: bool = True) -> Tensor:
    t = t - t.mean(axes, keepdim=True) if centre else t
    return t / (t.square().mean(axes, keepdim=True) + eps).sqrt().detach()


def layer_norm(m: nn.LayerNorm, t: Tensor) -> Tensor:
    return normed(t, (-1,), m.eps) * m.weight + m.bias


# multi-head attention --------------------------------------------------------------------------------------------

SETTINGS = {
    "plain": {},
    "no bias": {"bias": False},
    "keys and values of other widths": {"kdim": 3, "vdim": 4},
    "a key and a value of its own": {"add_bias_kv": True},
    "a zero token": {"add_zero_attn": True},
    "dropout": {"dropout": 0.3},
}
MASKS = {
    "none": ({}, 0.0),
    "causal": ({"attn_mask": CAUSAL}, as_bias(CAUSAL)),
    "a bias": ({"attn_mask": BIAS}, BIAS),
    "padding": ({"key_padding_mask": PADDED}, as_bias(PADDED)[:, None, None]),
    "both": ({"attn_mask": CAUSAL, "key_padding_mask": PADDED}, as_bias(CAUSAL | PADDED[:, None])[:, None]),
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    ("settings", "mask"),
    [(s, "none") for s in SETTINGS]
    + [("plain", m) for m in MASKS]
    + [("a key and a value of its own", "causal"), ("a zero token", "padding")],
)
def test_multi_head_attention_moves_values_with_constant_weights(settings, mask, need_weights):
    setting, (given, bias) = SETTINGS[settings], MASKS[mask]
    attention = randomly(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **setting))
    kdim, vdim = setting.get("kdim", WIDTH), setting.get("vdim", WIDTH)

    def model(t):
        return attention(t, t[..., :kdim], t[..., :vdim], need_weights=need_weights, **given)[0].sum(1)

    def by_hand(t):
        return multi_head(attention, t, t[..., :kdim], t[..., :vdim], bias).sum(1)

    explained_as(model, by_hand, tokens())


def test_attention_with_the_tokens_first_or_in_heads_of_its_mask_is_the_same():
    batch_first = randomly(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    tokens_first = randomly(nn.MultiheadAttention(WIDTH, HEADS))
    wanted = lrp.relevance(lambda t: batch_first(t, t, t)[0].sum(1), tokens(), 1)
    agree(lrp.relevance(lambda t: (s := t.transpose(0, 1), tokens_first(s, s, s)[0].sum(0))[1], tokens(), 1), wanted)
    per_head = CAUSAL.expand(2 * HEADS, -1, -1)
    agree(
        lrp.relevance(
            lambda t: batch_first(t, t, t, attn_mask=per_head, average_attn_weights=False)[0].sum(1), tokens(), 1
        ),
        lrp.relevance(lambda t: batch_first(t, t, t, attn_mask=CAUSAL, is_causal=True)[0].sum(1), tokens(), 1),
    )


def test_queries_get_no_relevance_and_memory_gets_it_all():
    attention = randomly(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, bias=False))

    def model(t):
        return attention(t[:, :2], t[:, 2:], t[:, 2:], need_weights=False)[0].sum(1)

    trace = explained_as(model, lambda t: multi_head(attention, t[:, :2], t[:, 2:], t[:, 2:]).sum(1), tokens())
    assert torch.equal(trace.relevance[:, :2], torch.zeros(2, 2, WIDTH).double())
    agree(trace.relevance.flatten(1).sum(1), trace.output[:, 1])


def test_functional_attention_is_the_module():
    m = randomly(nn.MultiheadAttention(WIDTH, HEADS))

    def functional(t):
        t = t.transpose(0, 1)
        return F.multi_head_attention_forward(
            t, t, t, WIDTH, HEADS, m.in_proj_weight, m.in_proj_bias, None, None, False, 0.2, m.out_proj.weight,
            m.out_proj.bias, training=False, need_weights=False,
        )[0].sum(0)  # fmt: skip

    explained_as(functional, lambda t: multi_head(m, t, t, t).sum(1), tokens())


SDPA = {
    "plain": ({}, 0.0),
    "is_causal": ({"is_causal": True}, as_bias(CAUSAL)),
    "mask": ({"attn_mask": ~CAUSAL}, as_bias(CAUSAL)),
    "bias": ({"attn_mask": BIAS, "dropout_p": 0.0}, BIAS),
    "scale": ({"scale": 1 / math.sqrt(WIDTH)}, 0.0),
}


@pytest.mark.parametrize("name", SDPA)
def test_scaled_dot_product_attention_moves_values(name):
    given, mask = SDPA[name]
    m = Functional(
        lambda m, t: F.scaled_dot_product_attention(m.q(t), m.k(t), m.v(t), **given).sum(1),
        **{n: randomly(nn.Linear(WIDTH, WIDTH), i) for i, n in enumerate("qkv")},
    )
    explained_as(m, lambda t: attend(m.q(t), m.k(t), m.v(t), mask).sum(1), tokens())

    named = Functional(
        lambda m, t: F.scaled_dot_product_attention(query=m.q(t), key=m.k(t), value=m.v(t), **given).sum(1),
        **{n: randomly(nn.Linear(WIDTH, WIDTH), i) for i, n in enumerate("qkv")},
    )
    agree(lrp.relevance(named, tokens(), 1), lrp.relevance(m, tokens(), 1))


def test_a_bias_that_depends_on_the_input_steers_only():
    parts = {n: randomly(nn.Linear(WIDTH, WIDTH), i) for i, n in enumerate("qkv")}
    m = Functional(
        lambda m, t: F.scaled_dot_product_attention(m.q(t), m.k(t), m.v(t), attn_mask=t @ t.mT).sum(1), **parts
    )
    explained_as(m, lambda t: attend(m.q(t), m.k(t), m.v(t), t @ t.mT).sum(1), tokens())


# as people write it -----------------------------------------------------------------------------------------------


class OwnAttention(nn.Module):
    """qkv in one layer, heads by reshape and permute, a relative bias, dropout: as in swin or timm."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.qkv, self.out = how, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.drop = nn.Dropout(0.2)
        randomly(self)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        if self.how == "einsum":
            scores = torch.einsum("nhqd,nhkd->nhqk", q, k) / math.sqrt(c // HEADS)
            y = torch.einsum("nhqk,nhkd->nqhd", scores.softmax(-1), v).reshape(n, t, c)
        elif self.how == "bmm":
            q, k, v = (s.reshape(n * HEADS, t, -1) for s in (q, k, v))
            weights = self.drop(torch.softmax(torch.bmm(q, k.transpose(1, 2)) * (c // HEADS) ** -0.5, dim=2))
            y = torch.bmm(weights, v).view(n, HEADS, t, -1).transpose(1, 2).reshape(n, t, c)
        elif self.how == "baddbmm":
            q, k, v = (s.reshape(n * HEADS, t, -1) for s in (q, k, v))
            zeros = torch.zeros(n * HEADS, t, t, dtype=x.dtype)
            scores = torch.baddbmm(zeros, q, k.mT, beta=1, alpha=(c // HEADS) ** -0.5)
            y = torch.bmm(F.softmax(scores, -1), v).view(n, HEADS, t, -1).transpose(1, 2).reshape(n, t, c)
        elif self.how == "float32 softmax":  # as in language models
            q = q * (c // HEADS) ** -0.5
            y = (F.softmax(q @ k.mT, -1, dtype=torch.float64).to(q.dtype) @ v).transpose(1, 2).flatten(2)
        else:
            q = q * (c // HEADS) ** -0.5
            scores = q @ k.transpose(-2, -1)
            scores = scores.masked_fill(torch.zeros(t, t, dtype=torch.bool), -torch.inf)
            y = (self.drop(scores.softmax(dim=-1)) @ v).transpose(1, 2).contiguous().view(n, t, c)
        return self.out(y).mean(1)


@pytest.mark.parametrize("how", ["matmul", "einsum", "bmm", "baddbmm", "float32 softmax"])
def test_attention_written_by_hand_is_attention(how):
    own = OwnAttention(how)

    def by_hand(x):
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in own.qkv(x).chunk(3, -1))
        return own.out(attend(q, k, v).transpose(1, 2).flatten(2)).mean(1)

    explained_as(own, by_hand, tokens())


def test_linear_attention_shares_between_keys_and_values_and_not_with_its_normaliser():
    """Without a softmax all three are signals, but the feature map exp makes gates of two of them."""
    parts = {n: randomly(nn.Linear(WIDTH, WIDTH), i) for i, n in enumerate("qkv")}

    def model(m, t):
        q, k, v = m.q(t).exp(), m.k(t).exp(), m.v(t)
        return ((q @ (k.mT @ v)) / (q @ k.sum(1, keepdim=True).mT)).mean(1)

    m = Functional(model, **parts)

    def by_hand(t):
        q, k = m.q(t).exp().detach(), m.k(t).exp().detach()
        return ((q @ (k.mT @ m.v(t))) / (q @ k.sum(1, keepdim=True).mT)).mean(1)

    explained_as(m, by_hand, tokens())


# transformers ----------------------------------------------------------------------------------------------------


def feed_forward(m: nn.Module, t: Tensor) -> Tensor:
    g = m.activation if callable(m.activation) else getattr(F, m.activation)
    return m.linear2(torch.relu(m.linear1(t)) if g is F.relu else secant(g, m.linear1(t)))


def encoder_layer(m: nn.TransformerEncoderLayer, t: Tensor, mask=0.0) -> Tensor:
    def attention(s):
        return multi_head(m.self_attn, s, s, s, mask)

    if m.norm_first:
        t = t + attention(layer_norm(m.norm1, t))
        return t + feed_forward(m, layer_norm(m.norm2, t))
    t = layer_norm(m.norm1, t + attention(t))
    return layer_norm(m.norm2, t + feed_forward(m, t))


def decoder_layer(m: nn.TransformerDecoderLayer, t: Tensor, memory: Tensor, mask=0.0) -> Tensor:
    t = layer_norm(m.norm1, t + multi_head(m.self_attn, t, t, t, mask))
    t = layer_norm(m.norm2, t + multi_head(m.multihead_attn, t, memory, memory))
    return layer_norm(m.norm3, t + feed_forward(m, t))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
def test_a_transformer_encoder_is_its_formula_with_constant_weights_and_scales(norm_first, activation, mask):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, activation=activation, norm_first=norm_first, batch_first=True)
    m = randomly(nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False))
    given = {"causal": {"mask": CAUSAL}, "padding": {"src_key_padding_mask": PADDED}, "none": {}}[mask]
    bias = MASKS[mask][1]

    def by_hand(t):
        for part in m.layers:
            t = encoder_layer(part, t, bias)
        return layer_norm(m.norm, t).sum(1)

    explained_as(lambda t: m(t, **given).sum(1), by_hand, tokens())


def test_a_transformer_decoder_hands_relevance_to_its_targets_and_its_memory():
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 12, batch_first=True)
    m = randomly(nn.TransformerDecoder(layer, 2))

    def by_hand(t):
        y, memory = t[:, :3], t[:, 3:]
        for part in m.layers:
            y = decoder_layer(part, y, memory, as_bias(CAUSAL[:3, :3]))
        return y.sum(1)

    trace = explained_as(lambda t: m(t[:, :3], t[:, 3:], tgt_mask=CAUSAL[:3, :3]).sum(1), by_hand, tokens())
    assert (trace.relevance.abs().sum(-1) > 1e-6).all()


def test_a_whole_transformer():
    m = randomly(nn.Transformer(WIDTH, HEADS, 1, 1, 12, batch_first=True))
    mask = nn.Transformer.generate_square_subsequent_mask(2).double()

    def by_hand(t):
        memory = layer_norm(m.encoder.norm, encoder_layer(m.encoder.layers[0], t[:, :3]))
        return layer_norm(m.decoder.norm, decoder_layer(m.decoder.layers[0], t[:, 3:], memory, mask)).sum(1)

    explained_as(lambda t: m(t[:, :3], t[:, 3:], tgt_mask=mask).sum(1), by_hand, tokens())


@pytest.mark.parametrize("grad", [True, False])
def test_the_fast_path_of_an_encoder_is_not_taken(grad):
    # without gradients PyTorch runs an encoder layer in one fused call
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, batch_first=True)
    m = randomly(nn.TransformerEncoder(layer, 2))
    wanted = lrp.relevance(lambda t: m(t).sum(1), tokens(), 1)
    for p in m.parameters():
        p.requires_grad_(False)
    with torch.set_grad_enabled(grad):
        agree(lrp.relevance(lambda t: m(t).sum(1), tokens(), 1), wanted, 1e-12)
        trace = lrp.trace(lambda t: m(t, src_key_padding_mask=PADDED).sum(1), tokens(), 1)
        assert len(trace.ledger) > 10


# norms -----------------------------------------------------------------------------------------------------------

IMAGE = (2, 4, 3, 3)
W, B = tokens(4, seed=7), tokens(4, seed=8)
PER_CHANNEL = (slice(None), None, None)
NORMS = {
    "F.layer_norm": (lambda t: F.layer_norm(t, (3, 3)), lambda t: normed(t, (-2, -1))),
    "torch.layer_norm": (lambda t: torch.layer_norm(t, (3,), eps=0.1), lambda t: normed(t, (-1,), 0.1)),
    "layer norm over all": (
        lambda t: F.layer_norm(t, IMAGE[1:], AFFINE[0], AFFINE[1]),
        lambda t: normed(t, (1, 2, 3)) * AFFINE[0] + AFFINE[1],
    ),
    "nn.LayerNorm": (
        lambda t: NORM(t.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        lambda t: normed(t, (1,)) * NORM.weight[PER_CHANNEL] + NORM.bias[PER_CHANNEL],
    ),
    "group norm": (
        lambda t: F.group_norm(t, 2, W, B),
        lambda t: normed(t.unflatten(1, (2, 2)), (2, 3, 4)).flatten(1, 2) * W[PER_CHANNEL] + B[PER_CHANNEL],
    ),
    "nn.GroupNorm of one": (
        lambda t: nn.GroupNorm(1, 4).double()(t),
        lambda t: normed(t, (1, 2, 3)),
    ),
    "instance norm": (
        lambda t: F.instance_norm(t, weight=W, bias=B),
        lambda t: normed(t, (2, 3)) * W[PER_CHANNEL] + B[PER_CHANNEL],
    ),
    "nn.InstanceNorm2d": (lambda t: nn.InstanceNorm2d(4).eval()(t), lambda t: normed(t, (2, 3))),
    "instance norm with statistics": (
        lambda t: F.instance_norm(t, B, W.abs(), W, B, use_input_stats=False),
        lambda t: ((t - B[PER_CHANNEL]) / (W.abs() + 1e-5).sqrt()[PER_CHANNEL]) * W[PER_CHANNEL] + B[PER_CHANNEL],
    ),
    "RMS norm": (
        lambda t: F.rms_norm(t, (3,), AFFINE[0][0, 0], 1e-6),
        lambda t: normed(t, (-1,), 1e-6, centre=False) * AFFINE[0][0, 0],
    ),
    "nn.RMSNorm": (
        lambda t: nn.RMSNorm((3, 3)).double()(t),
        lambda t: normed(t, (-2, -1), torch.finfo(torch.float64).eps, centre=False),
    ),
    "normalize": (
        lambda t: F.normalize(t, dim=1),
        lambda t: t / t.square().sum(1, keepdim=True).sqrt().detach(),
    ),
    "normalize by another norm": (
        lambda t: F.normalize(t, p=1, dim=(2, 3)),
        lambda t: t / t.abs().sum((2, 3), keepdim=True).detach(),
    ),
    "local response norm": (
        lambda t: F.local_response_norm(t, 3),
        lambda t: t * (F.local_response_norm(t, 3) / t).detach(),
    ),
}
AFFINE = tokens(2, *IMAGE[1:], seed=9)
NORM = randomly(nn.LayerNorm(4), 3)


@pytest.mark.parametrize("name", NORMS)
def test_the_scale_of_a_norm_is_a_constant(name):
    norm, by_hand = NORMS[name]
    m = Functional(
        lambda m, t: m.head(norm(m.a(t)).flatten(1)),
        a=randomly(nn.Conv2d(3, 4, 3), 1),
        head=randomly(nn.Linear(36, 3), 2),
    )
    explained_as(m, lambda t: m.head(by_hand(m.a(t)).flatten(1)), tokens(2, 3, 5, 5))


def test_similarity_of_two_signals_is_shared_and_its_norms_are_constants():
    anchor = tokens(1, WIDTH, seed=4)

    def similar(t):
        return torch.stack([F.cosine_similarity(t[:, 0], t[:, 1]), F.cosine_similarity(t[:, 0], anchor, dim=-1)], 1)

    def unit(t):
        return t / t.norm(dim=-1, keepdim=True).detach()

    def half(t):
        return (t + t.detach()) / 2

    def by_hand(t):
        a, b = unit(t[:, 0]), unit(t[:, 1])
        return torch.stack([(half(a) * half(b)).sum(-1), (a * unit(anchor)).sum(-1)], 1)

    for target in (0, 1):
        trace = explained_as(similar, by_hand, tokens(), target)
        agree(trace.relevance.flatten(1).sum(1), trace.output[:, target])  # where the gradient's would be zero
        plain = gradient_x_input(similar, tokens(), target).flatten(1).sum(1)
        agree(plain, torch.zeros(2).double(), 1e-9) if target == 0 else None


def test_a_log_softmax_is_its_logit_less_a_constant():
    m = randomly(nn.Sequential(nn.Linear(WIDTH, 6), nn.ReLU(), nn.Linear(6, 4), nn.LogSoftmax(1)))
    explained_as(m, lambda t: (y := m[:3](t)) - torch.logsumexp(y, 1, keepdim=True).detach(), tokens(3, WIDTH))
    agree(
        lrp.relevance(m, tokens(3, WIDTH), 1, composite=LRP0),
        lrp.relevance(m[:3].eval(), tokens(3, WIDTH), 1, composite=LRP0),
    )


def test_all_rules_reach_the_layers_inside_of_attention():
    m = randomly(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True))
    trace = lrp.trace(lambda t: m(t, t, t)[0].sum(1), tokens(), 1, composite=everywhere(lrp.Gamma(0.5)))
    gammas = [row for row in trace.ledger if row.rule.startswith("Gamma")]
    assert len(gammas) >= 2
    assert all(row.function.endswith("multi_head_attention_forward: linear") for row in gammas)
