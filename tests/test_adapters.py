"""The laws of the adapters: what is attached, switched off or taken away leaves the base model, to the last bit."""
from dataclasses import asdict
from itertools import permutations
from pathlib import Path
import json

from diffusers import WanVACEPipeline, WanVACETransformer3DModel
from peft import LoraConfig
from torch.nn.functional import normalize
import pytest
import torch

from faceid_nb.adapters import lora
from faceid_nb.adapters.branch import HEADER, attach_face_branch, load_branch, save_branch
from faceid_nb.adapters.lora import LoraSettings, add_lora, load_lora, lora_parameters, lora_state, remove_lora, save_lora, set_lora_scale
from faceid_nb.adapters.mapper import MapperConfig
from faceid_nb.adapters.pretrained import start_branch
from faceid_nb.core.errors import UserError
from faceid_nb.core.files import save_tensors
from faceid_nb.models.wan_vace import WanHost
from faceid_nb.world.tiny import random_pipeline

SIZES = MapperConfig(width=32, tokens=3, hidden=32, rank=4)
KEYS = Path(__file__).resolve().parent.parent.parent/'shared'/'assets'/'lora'/'keys'


def base_model(width=32, layers=2, dtype=torch.float32):
    torch.manual_seed(0)
    model = WanVACETransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=width//2, in_channels=16, out_channels=16, text_dim=32, freq_dim=64, ffn_dim=2*width,
                                      num_layers=layers, rope_max_seq_len=64, vace_layers=[0], vace_in_channels=96)
    return model.requires_grad_(False).eval().to(dtype)


def ask(model, b=2, **more):
    g, dtype = torch.Generator().manual_seed(1), model.proj_out.weight.dtype
    draw = lambda *shape: torch.randn(shape, generator=g).to(dtype)
    with torch.no_grad():
        return model(hidden_states=draw(b, 16, 2, 6, 4), timestep=torch.linspace(100, 900, b), encoder_hidden_states=draw(b, 512, 32), control_hidden_states=draw(b, 96, 2, 6, 4),
                     return_dict=False, **more)[0]


def moved(model, branch=None):
    "The adapters as some training would leave them"
    g = torch.Generator().manual_seed(2)
    for p in [*(branch.parameters() if branch else []), *lora_parameters(model).values()]: p.data += .05*torch.randn(p.shape, generator=g)


def somebody(seed=3): return normalize(torch.randn(1, 512, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('b', [1, 3])
def test_the_laws_of_the_branch(dtype, b):
    model = base_model(dtype=dtype)
    base, modules = ask(model, b), [n for n, _ in model.named_modules()]
    branch = attach_face_branch(WanHost(model), SIZES, torch.Generator().manual_seed(0))
    branch.set_identity(somebody())
    assert torch.equal(ask(model, b), base)                                                     # attached
    moved(model, branch)
    mine = ask(model, b)
    assert mine.dtype == dtype and not torch.equal(mine, base)
    assert torch.equal(ask(model, b, encoder_hidden_states_image=somebody().expand(b, -1)), mine)  # given by hand or by set_identity
    branch.scale = 0
    assert torch.equal(ask(model, b), base)                                                     # scale 0
    branch.scale = 1
    assert torch.equal(ask(model, b), mine)
    nobody = torch.zeros(b, 512)
    assert torch.equal(ask(model, b, encoder_hidden_states_image=nobody), base)                 # nobody
    branch.set_identity(None)
    assert torch.equal(ask(model, b), base)                                                     # no identity
    branch.detach()
    assert torch.equal(ask(model, b), base) and [n for n, _ in model.named_modules()] == modules  # detached


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_laws_of_the_lora(dtype, tmp_path):
    model = base_model(dtype=dtype)
    base = ask(model)
    add_lora(model, LoraSettings(rank=2, alpha=5.), torch.Generator().manual_seed(0))
    assert torch.equal(ask(model), base)
    assert {p.dtype for p in lora_parameters(model).values()} == {torch.float32}
    moved(model)
    mine = ask(model)
    set_lora_scale(model, 0)
    assert torch.equal(ask(model), base) and not torch.equal(mine, base)
    set_lora_scale(model, 1)
    save_lora(tmp_path, model)
    other = base_model(dtype=dtype)
    load_lora(other, tmp_path)
    assert torch.equal(ask(other), mine)
    load_lora(other, tmp_path)                                                                  # a second load replaces the first
    assert torch.equal(ask(other), mine)
    remove_lora(other)
    assert torch.equal(ask(other), base)


@pytest.mark.parametrize('order', list(permutations(['branch', 'lora'])))
def test_branch_and_lora_in_any_order(order, tmp_path):
    model = base_model()
    base, branch = ask(model), None
    for part in order:
        if part == 'lora': add_lora(model, LoraSettings(rank=2), torch.Generator().manual_seed(0))
        else: branch = attach_face_branch(WanHost(model), SIZES, torch.Generator().manual_seed(0))
    branch.set_identity(somebody())
    assert torch.equal(ask(model), base)
    moved(model, branch)
    both = ask(model)
    save_branch(tmp_path/'branch.safetensors', branch)
    save_lora(tmp_path, model)
    for way in permutations(['branch', 'lora']):
        other = base_model()
        for part in way:
            if part == 'lora': load_lora(other, tmp_path)
            else: twin = load_branch(tmp_path/'branch.safetensors', WanHost(other))
        twin.set_identity(somebody())
        assert torch.equal(ask(other), both)
    set_lora_scale(model, 0)
    branch.scale = 0
    assert torch.equal(ask(model), base)
    (branch.detach if order[0] == 'lora' else lambda: remove_lora(model))()
    (branch.detach if order[0] == 'branch' else lambda: remove_lora(model))()
    assert torch.equal(ask(model), base) and [n for n, _ in model.named_modules()] == [n for n, _ in base_model().named_modules()]


def test_the_mapper_waits_one_step():
    model = base_model()
    branch = attach_face_branch(WanHost(model), SIZES, torch.Generator().manual_seed(0))
    first = model.condition_embedder.image_embedder.first.weight
    optimizer = torch.optim.SGD(branch.parameters(), lr=1.)
    lengths = []
    for _ in range(2):
        g = torch.Generator().manual_seed(1)
        out = model(hidden_states=torch.randn(2, 16, 1, 6, 4, generator=g), timestep=torch.tensor([500., 500.]), encoder_hidden_states=torch.randn(2, 512, 32, generator=g),
                    encoder_hidden_states_image=torch.cat([somebody(3), somebody(4)]), control_hidden_states=torch.zeros(2, 96, 1, 6, 4), return_dict=False)[0]
        optimizer.zero_grad()
        out.square().mean().backward()
        lengths.append(first.grad.norm().item())
        optimizer.step()
    assert lengths[0] == 0 < lengths[1]


def test_equal_branches_are_equal_files(tmp_path):
    branch = attach_face_branch(WanHost(base_model()), SIZES, torch.Generator().manual_seed(0))
    files = [save_branch(tmp_path/f'{i}.safetensors', branch).read_bytes() for i in range(4)]
    assert len(set(files)) == 1


def test_files_that_do_not_fit(tmp_path):
    branch = attach_face_branch(WanHost(base_model()), SIZES, torch.Generator().manual_seed(0))
    save_branch(tmp_path/'branch.safetensors', branch)
    deep = base_model(layers=3)
    with pytest.raises(ValueError, match='face branch of another model'): load_branch(tmp_path/'branch.safetensors', WanHost(deep))
    assert deep.condition_embedder.image_embedder is None
    with pytest.raises(ValueError, match='made for a model of width 32, and this one has 64'): load_branch(tmp_path/'branch.safetensors', WanHost(base_model(width=64)))
    with pytest.raises(ValueError, match='missing'): load_branch(tmp_path/'nothing.safetensors', WanHost(base_model()))
    (tmp_path/'cut.safetensors').write_bytes((tmp_path/'branch.safetensors').read_bytes()[:-50])
    with pytest.raises(ValueError, match='cut.safetensors'): load_branch(tmp_path/'cut.safetensors', WanHost(base_model()))
    model = base_model()
    add_lora(model, LoraSettings(rank=2), torch.Generator().manual_seed(0))
    lora = save_lora(tmp_path, model)
    with pytest.raises(ValueError, match='is not a face branch'): load_branch(lora, WanHost(base_model()))
    with pytest.raises(ValueError, match='not a LoRA'): load_lora(base_model(), tmp_path/'branch.safetensors')
    wide = base_model(width=64)
    with pytest.raises(ValueError, match=r'LoRA of another model.*lora_A.weight \(2, 32\) for a layer of \(64, 64\)'): load_lora(wide, lora)
    assert not lora_parameters(wide)
    half = {k: v for i, (k, v) in enumerate(lora_state(model).items()) if i}
    with pytest.raises(ValueError, match='an A and a B for each layer'): load_lora(base_model(), save_tensors(tmp_path/'half.safetensors', half, {}))


@pytest.mark.parametrize('file', sorted(KEYS.glob('*.json')) or [None], ids=lambda f: f.stem if f else 'none')
def test_loras_of_other_models(file, tmp_path):
    if file is None: pytest.skip('the key lists of real LoRA files are not beside this checkout (../shared/assets/lora/keys)')
    told = json.loads(file.read_text())
    shapes = told['keys'] if 'keys' in told else {k: [4, 4] for part in told.values() if isinstance(part, list) for k in part}
    names = list(shapes)
    lora = save_tensors(tmp_path/'lora.safetensors', {n: torch.zeros([min(d, 64) for d in shape]) for n, shape in shapes.items()}, {})
    model = base_model()
    with pytest.raises(ValueError) as error: load_lora(model, lora)
    message = str(error.value)
    assert 'lora.safetensors' in message and any(n.removeprefix('transformer.') in message for n in names)
    assert not lora_parameters(model)


def test_through_the_pipeline(tmp_path):
    pipe = random_pipeline(0)
    pipe.set_progress_bar_config(disable=True)
    def film(): return pipe(prompt='a person', height=32, width=32, num_frames=5, num_inference_steps=2, guidance_scale=3., output_type='latent', generator=torch.Generator().manual_seed(0)).frames
    base = film()
    branch = attach_face_branch(WanHost(pipe.transformer), MapperConfig(width=256), torch.Generator().manual_seed(0))
    add_lora(pipe.transformer, LoraSettings(rank=2, alpha=3.), torch.Generator().manual_seed(0))
    branch.set_identity(somebody())
    assert torch.equal(film(), base)
    moved(pipe.transformer)
    file, with_lora = save_lora(tmp_path, pipe.transformer), film()
    moved(pipe.transformer, branch)
    set_lora_scale(pipe.transformer, 0)
    assert not torch.equal(film(), base)
    branch.set_identity(None)
    assert torch.equal(film(), base)
    branch.detach()
    remove_lora(pipe.transformer)
    pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name='me', use_safetensors=True)
    assert torch.equal(film(), with_lora)
    with pytest.raises(ValueError, match='exactly 512 rows'):
        attach_face_branch(WanHost(pipe.transformer), MapperConfig(width=256), torch.Generator().manual_seed(0))
        pipe(prompt='a person', height=32, width=32, num_frames=5, num_inference_steps=1, max_sequence_length=226)


def test_the_model_may_be_called_by_position():
    model = base_model()
    g = torch.Generator().manual_seed(1)
    x = [torch.randn(1, 16, 1, 6, 4, generator=g), torch.tensor([500.]), torch.randn(1, 512, 32, generator=g), None, torch.randn(1, 96, 1, 6, 4, generator=g)]
    with torch.no_grad():
        base = model(*x).sample
        branch = attach_face_branch(WanHost(model), SIZES, torch.Generator().manual_seed(0))
        branch.set_identity(somebody())
        assert torch.equal(model(*x).sample, base)
        moved(model, branch)
        assert not torch.equal(model(*x).sample, base)


LAYERS = ('blocks.0.attn1.to_q', 'blocks.0.attn2.to_k', 'blocks.1.ffn.net.2')
LORA = 'transformer.blocks.0.attn1.to_q.lora_'


def lora_tensors(ranks=(4, 4, 4), dtype=torch.float32):
    "Weights of a LoRA on three layers of `base_model`"
    g, layers = torch.Generator().manual_seed(5), dict(base_model().named_modules())
    made = {}
    for name, rank in zip(LAYERS, ranks):
        weight = layers[name].weight
        made[f'transformer.{name}.lora_A.weight'] = .2*torch.randn(rank, weight.shape[1], generator=g).to(dtype)
        made[f'transformer.{name}.lora_B.weight'] = .2*torch.randn(weight.shape[0], rank, generator=g).to(dtype)
    return made


def lora_header(**settings):
    settings = {'target_modules': list(LAYERS)} | settings
    return {'lora_adapter_metadata': json.dumps({f'transformer.{k}': v for k, v in settings.items()})}


def through_diffusers(file):
    "The same file through the door of diffusers"
    pipe = WanVACEPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=base_model())
    pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name='me', use_safetensors=True)
    return ask(pipe.transformer.eval())  # no dropout


FULL = json.loads(json.dumps(LoraConfig(r=4, lora_alpha=7, target_modules=['to_q'], lora_dropout=.1, init_lora_weights='gaussian').to_dict(), default=list))


@pytest.mark.parametrize('ranks, words', [
    ((4, 4, 4), {}),
    ((4, 2, 8), {}),
    ((4, 4, 4), lora_header(r=4, lora_alpha=9)),
    ((4, 4, 4), lora_header(r=4, lora_alpha=2.5, use_rslora=True)),
    ((4, 2, 4), lora_header(r=4, lora_alpha=3, rank_pattern={'blocks.0.attn2.to_k': 2}, alpha_pattern={'^blocks.1.ffn.net.2': 16.})),
    ((4, 2, 8), lora_header(r=4, lora_alpha=3, rank_pattern={'to_k': 2, 'net.2': 8}, alpha_pattern={'to_k': 1}, use_rslora=True)),
    ((4, 4, 4), lora_header(**FULL)),
], ids=['bare', 'ranks', 'alpha', 'rslora', 'patterns', 'all', 'full'])
def test_a_lora_is_applied_as_diffusers_does(tmp_path, ranks, words):
    file = save_tensors(tmp_path/'theirs'/'lora.safetensors', lora_tensors(ranks), words)
    model = base_model()
    base = ask(model)
    load_lora(model, file)
    mine = ask(model)
    assert not torch.equal(mine, base)
    assert torch.equal(mine, through_diffusers(file))
    again = save_lora(tmp_path/'again', model)
    assert torch.equal(mine, through_diffusers(again))
    other = base_model()
    load_lora(other, again)
    assert torch.equal(ask(other), mine)
    set_lora_scale(model, 0)
    assert torch.equal(ask(model), base)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_lora_of_16_bits_is_widened(tmp_path, dtype):
    model, wide = base_model(), base_model()
    tensors = lora_tensors(dtype=dtype)
    load_lora(model, save_tensors(tmp_path/'half.safetensors', tensors, {}))
    load_lora(wide, save_tensors(tmp_path/'wide.safetensors', {name: tensor.float() for name, tensor in tensors.items()}, {}))
    assert torch.equal(ask(model), ask(wide))


def changed(**tensors): return {**lora_tensors(), **{f'{LORA}{name}.weight': tensor for name, tensor in tensors.items()}}


REFUSED = {
    'rank': (lora_tensors(), lora_header(r=8, lora_alpha=8), 'r or rank_pattern'),
    'no alpha': (lora_tensors(), lora_header(r=4), 'lora_alpha is missing'),
    'dora': (lora_tensors(), lora_header(r=4, lora_alpha=4, use_dora=True), 'use_dora'),
    'dora weights': ({**lora_tensors(), f'{LORA}magnitude_vector': torch.ones(32)}, {}, 'lora_magnitude_vector'),
    'alpha key': ({**lora_tensors(), 'transformer.blocks.0.attn1.to_q.alpha': torch.tensor(8.)}, {}, 'to_q.alpha'),
    'bias': ({**lora_tensors(), f'{LORA}B.bias': torch.ones(32)}, {}, 'lora_B.bias'),
    'lora_bias': (lora_tensors(), lora_header(r=4, lora_alpha=4, lora_bias=True), 'lora_bias'),
    'pissa': (lora_tensors(), lora_header(r=4, lora_alpha=4, init_lora_weights='pissa'), 'init_lora_weights'),
    'unknown': (lora_tensors(), lora_header(r=4, lora_alpha=4, strength=2), 'strength'),
    'no prefix': (lora_tensors(), {'lora_adapter_metadata': '{"r": 4, "lora_alpha": 4}'}, 'r is not known'),
    'slow pattern': (lora_tensors(), lora_header(r=4, lora_alpha=4, alpha_pattern={'(.*)*x': 4}), 'alpha_pattern'),
    'bad pattern': (lora_tensors(), lora_header(r=4, lora_alpha=4, alpha_pattern={'\\': 4}), 'alpha_pattern'),
    'strong pattern': (lora_tensors(), lora_header(r=4, lora_alpha=4, alpha_pattern={'to_q': 1e6}), 'alpha_pattern.to_q'),
    **{f'alpha {alpha!r}': (lora_tensors(), lora_header(r=4, lora_alpha=alpha), 'lora_alpha') for alpha in (1e6, 0, -1, float('nan'), float('inf'), '8', [8], None, True, {})},
    'rank text': (lora_tensors(), lora_header(r='4', lora_alpha=4), 'r must be'),
    **{f'header {text[:9]}': (lora_tensors(), {'lora_adapter_metadata': text}, 'lora_adapter_metadata') for text in ('no json', '[1]', '3', '"x"', 'null', '['*5000)},
    'ranks of A and B': (changed(A=torch.zeros(3, 32)), {}, 'rank 3'),
    'rank 0': (changed(A=torch.zeros(0, 32), B=torch.zeros(32, 0)), {}, 'rank 0'),
    'A alone': ({n: t for n, t in lora_tensors().items() if n != f'{LORA}B.weight'}, {}, 'lora_A alone'),
    'B alone': ({n: t for n, t in lora_tensors().items() if n != f'{LORA}A.weight'}, {}, 'lora_B alone'),
    'shape': (changed(A=torch.zeros(4, 31)), {}, 'lora_A.weight (4, 31)'),
    'vector': (changed(A=torch.zeros(32)), {}, 'lora_A.weight (32,)'),
    'nan': (changed(A=torch.full((4, 32), torch.nan)), {}, 'NaN'),
    'inf': (changed(B=torch.full((32, 4), torch.inf)), {}, 'infinity'),
    'huge': (changed(B=torch.full((32, 4), 9e28)), {}, '9.0e+28'),
    'int': (changed(A=torch.ones(4, 32, dtype=torch.int32)), {}, 'int32'),
    'bool': (changed(A=torch.ones(4, 32, dtype=torch.bool)), {}, 'bool'),
    'two prefixes': ({**lora_tensors(), 'blocks.0.attn1.to_q.lora_A.weight': torch.zeros(4, 32), 'blocks.0.attn1.to_q.lora_B.weight': torch.zeros(32, 4)}, {}, 'two prefixes'),
    'no tensors': ({}, {}, 'empty'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_a_refused_lora_changes_nothing(tmp_path, case):
    tensors, words, said = REFUSED[case]
    model = base_model()
    load_lora(model, save_tensors(tmp_path/'mine.safetensors', lora_tensors((2, 2, 2)), {}))
    set_lora_scale(model, .7)
    before, modules = ask(model), [n for n, _ in model.named_modules()]
    file = save_tensors(tmp_path/'odd.safetensors', tensors, words)
    with pytest.raises(UserError) as error: load_lora(model, file)
    message = str(error.value)
    assert '\n' not in message and 'odd.safetensors' in message and said in message, message
    assert torch.equal(ask(model), before) and [n for n, _ in model.named_modules()] == modules
    fresh = base_model()
    base = ask(fresh)
    with pytest.raises(UserError): load_lora(fresh, file)
    assert torch.equal(ask(fresh), base) and not hasattr(fresh, 'peft_config')


@pytest.mark.parametrize('earlier', [True, False])
def test_a_load_that_dies_half_way_restores_the_earlier_lora(tmp_path, monkeypatch, earlier):
    model = base_model()
    if earlier:
        load_lora(model, save_tensors(tmp_path/'mine.safetensors', lora_tensors((2, 2, 2)), {}))
        set_lora_scale(model, .7)
    before, file, attach = ask(model), save_tensors(tmp_path/'new.safetensors', lora_tensors(), {}), lora._attach
    def no_memory(transformer, config):
        monkeypatch.setattr(lora, '_attach', attach)
        attach(transformer, config)
        raise torch.OutOfMemoryError('no memory')
    monkeypatch.setattr(lora, '_attach', no_memory)
    with pytest.raises(torch.OutOfMemoryError): load_lora(model, file)
    assert torch.equal(ask(model), before) and bool(lora_parameters(model)) == earlier
    load_lora(model, file)
    assert torch.equal(ask(model), through_diffusers(file))


def test_a_flipped_bit_is_refused(tmp_path):
    model = base_model()
    branch = attach_face_branch(WanHost(model), SIZES, torch.Generator().manual_seed(0))
    add_lora(model, LoraSettings(rank=2), torch.Generator().manual_seed(0))
    for file, load in ((save_branch(tmp_path/'branch.safetensors', branch), lambda path, model: load_branch(path, WanHost(model))), (save_lora(tmp_path, model), None)):
        data = bytearray(file.read_bytes())
        data[-9] ^= 4
        file.write_bytes(data)
        fresh = base_model()
        with pytest.raises(UserError, match=file.name): load(file, fresh) if load else load_lora(fresh, file)
        assert torch.equal(ask(fresh), ask(base_model()))


def branch_file(place, header=None, **weights):
    "A branch of `base_model` on the disk, with some of it exchanged"
    branch = attach_face_branch(WanHost(base_model()), SIZES, torch.Generator().manual_seed(0))
    state = {**branch.state_dict(), **weights}
    words = {'version': 1, 'config': asdict(SIZES)} if header is None else header
    text = words if isinstance(words, str) else json.dumps(words)
    return save_tensors(place/'odd.safetensors', {name: tensor for name, tensor in state.items() if tensor is not None}, {HEADER: text})


FIRST = 'condition_embedder.image_embedder.first.bias'
GOOD = asdict(SIZES)
ODD_BRANCH = {
    **{f'header {text[:6]}': ({'header': text}, HEADER) for text in ('no', '[]', '3', 'null', '{}', '["version"]', '{"version": 1}', '{"version": 1, "config": 5}')},
    'version': ({'header': {'version': 2, 'config': GOOD}}, 'version'),
    'more': ({'header': {'version': 1, 'config': GOOD | {'depth': 3}}}, 'depth'),
    'less': ({'header': {'version': 1, 'config': {'tokens': 3}}}, 'width'),
    **{f'tokens {n!r}': ({'header': {'version': 1, 'config': GOOD | {'tokens': n}}}, 'tokens') for n in (-3, 0, 'many', 1e300, [3], None, 10**9)},
    'terabytes': ({'header': {'version': 1, 'config': GOOD | {'tokens': 512, 'hidden': 65_536}}}, 'odd.safetensors'),
    'width': ({'header': {'version': 1, 'config': GOOD | {'width': 65_536}}}, 'width'),
    'missing': ({FIRST: None}, FIRST),
    'extra': ({'another': torch.zeros(3)}, 'another'),
    'shape': ({FIRST: torch.zeros(1)}, FIRST),
    'nan': ({FIRST: torch.full((32,), torch.nan)}, FIRST),
    'inf': ({FIRST: torch.full((32,), torch.inf)}, FIRST),
    'huge': ({FIRST: torch.full((32,), 9e28)}, FIRST),
    'int': ({FIRST: torch.zeros(32, dtype=torch.int64)}, FIRST),
}


@pytest.mark.parametrize('case', ODD_BRANCH)
def test_a_refused_branch_changes_nothing(tmp_path, case):
    parts, said = ODD_BRANCH[case]
    file, model = branch_file(tmp_path, **parts), base_model()
    base, modules = ask(model), [n for n, _ in model.named_modules()]
    for load in (lambda path, model: load_branch(path, WanHost(model)), lambda path, model: start_branch(WanHost(model), SIZES, torch.Generator().manual_seed(0), path)):
        with pytest.raises(UserError) as error: load(file, model)
        message = str(error.value)
        assert '\n' not in message and 'odd.safetensors' in message and said in message, message
        assert torch.equal(ask(model), base) and [n for n, _ in model.named_modules()] == modules
    load_branch(branch_file(tmp_path), WanHost(model))


def test_an_identity_that_is_not_finite_is_refused():
    branch = attach_face_branch(WanHost(base_model()), SIZES, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match='NaN'): branch.set_identity(torch.full((512,), torch.nan))
