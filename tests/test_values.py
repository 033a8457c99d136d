"""Every value of a recipe is checked before anything runs: nonsense is one line that names the key, and no file changes."""
from dataclasses import fields, is_dataclass
from hashlib import sha256
from pathlib import Path
import json

from pydantic import ValidationError
import pytest

from faceid_nb.app.cli import main
from faceid_nb.app.recipes import RECIPES, known_keys, named_recipe, open_recipe, with_overrides
from faceid_nb.core.errors import UserError

TINY = named_recipe('tiny')
NUMBERS = [key for key, value in known_keys(TINY).items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
SWITCHES = [key for key, value in known_keys(TINY).items() if isinstance(value, bool)]
NEVER_NEGATIVE = [key for key in NUMBERS if key not in ('curation.same_person', 'curation.same_moment')]
NONSENSE = {
    'training.lr_lora': ['-1', '1e3', '0'], 'training.lr_mapper': ['-1', '2'], 'training.steps_a': ['-5', '1.5', 'many'], 'training.batch_size': ['0', '-1'],
    'training.ema_decay': ['2', '1', '-0.1'], 'training.clip': ['-1', '0'], 'training.id_dropout': ['5', '-.1'], 'training.text_dropout': ['1.1'], 'training.shift': ['-3', '0'],
    'training.precision': ['int4', 'fp8', ''], 'flow_shift': ['-3', '0', '1e9'], 'curation.heldout': ['1.5', '1', '-1'], 'curation.max_yaw': ['181'], 'curation.duplicate_bits': ['145'],
    'lora.rank': ['0', '-4', '1e9'], 'lora.alpha': ['0', '-1', '1e6', 'nan'], 'lora.targets': ['(', '[a', '*'], 'mapper.tokens': ['0', '100000'], 'mapper.rank': ['0'],
    'mapper.width': ['0', '-256'], 'sampling.steps': ['0', '100000'], 'sampling.guidance_scale': ['0', '.5', '-1'], 'sampling.face_scale': ['-1', '1e9'], 'sampling.fps': ['0', '-1', 'inf'],
    'num_frames': ['4', '0', '-1', '82'], 'size': ['100x64', '0x0', '192', '192x128x3', 'large', '-16x16'], 'pack.det_sides': ['', '0', '-192', 'wide'], 'pack.kind': ['dlib', ''],
    'model.device': ['gpu', 'cuda:', 'cuda:x', 'tpu'], 'model.dtype': ['int8', 'float8', 'float'], 'model.gigabytes': ['-1', 'nan'], 'inputs.n_photos': ['0', '-1', '1000000'],
    'inputs.n_dances': ['0', '-3'], 'seed': ['-1', 'three', '1.5', str(2**70)], 'trigger': ['', '  '], 'prompt': [''], 'cutting.reference': ['1', '-.5'],
    'subject': ['', '.', '..', '../x', '/x', 'a/b', 'a\\b', '-rf', '~', '~root', ' a', 'a\nb', 'a\0b', 'x'*300]}


def tree(folder):
    "Every file and folder below, with its content"
    return {p.relative_to(folder).as_posix(): sha256(p.read_bytes()).hexdigest() if p.is_file() else 'folder' for p in sorted(Path(folder).rglob('*'))}


def refused(key, value):
    with pytest.raises(UserError) as found: with_overrides(TINY, {key: value})
    said = str(found.value)
    assert key.split('.')[-1] in said and '\n' not in said, said
    return said


@pytest.mark.parametrize('key', NUMBERS)
def test_no_number_is_nan_or_endless_or_a_word(key):
    for value in (float('nan'), float('inf'), 'nan', '-inf', 'many', '', None, [], {}): refused(key, value)


@pytest.mark.parametrize('key', NEVER_NEGATIVE)
def test_no_number_is_far_below_zero(key): refused(key, -10)


@pytest.mark.parametrize('key', SWITCHES)
def test_a_switch_is_on_or_off(key):
    for value in ('2', 'perhaps', '', None, 3.5): refused(key, value)
    name, field = key.rsplit('.', 1)
    for word, wanted in (('yes', True), ('no', False), ('true', True), ('0', False)):
        try: changed = with_overrides(TINY, {key: word})
        except UserError as error: assert 'train' in str(error)  # the two parts of a training depend on each other
        else: assert getattr(getattr(changed, name), field) is wanted


@pytest.mark.parametrize('key', NONSENSE)
def test_nonsense_is_one_line_that_names_the_key(key):
    for value in NONSENSE[key]: refused(key, value)


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(UserError) as found: with_overrides(TINY, {'lora.rank': 0, 'training.batch_size': 0, 'seed': 'x', 'pack.kind': 'dlib'})
    for key in ('lora.rank', 'training.batch_size', 'seed', 'pack.kind'): assert key in str(found.value)


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_survives_being_written_down(name):
    recipe = named_recipe(name)
    written = json.loads(json.dumps(known_keys(recipe)))
    assert with_overrides(named_recipe(name), written) == recipe
    texts = {key: str(value) for key, value in written.items() if not isinstance(value, (list, type(None)))}
    assert with_overrides(named_recipe(name), texts) == recipe


def test_every_configuration_checks_itself():
    "A configuration made in Python refuses what the command line refuses"
    def configurations(value):
        yield value
        for field in fields(value):
            if is_dataclass(inner := getattr(value, field.name)): yield from configurations(inner)
    for value in configurations(TINY):
        plain = {field.name: getattr(value, field.name) for field in fields(value)}
        for name, given in plain.items():
            if isinstance(given, (int, float)) and not isinstance(given, bool):
                with pytest.raises(ValidationError): type(value)(**plain | {name: float('nan')})
        with pytest.raises(ValidationError): type(value)(**plain, nonsense=1)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder of notes, a folder that is called photos, and a run that was made of it"
    from faceid_nb.app.runner import write_run
    home = tmp_path_factory.mktemp('values')
    for place in ('notes', 'me/photos', 'run/train/lora'): (home/place).mkdir(parents=True)
    (home/'notes/diary.txt').write_text('mine')
    (home/'me/photos/1.jpg').write_bytes(b'no photo')
    write_run(open_recipe('tiny', {'inputs.photos': str(home/'me/photos')}), home/'run')
    (home/'run/train/lora/pytorch_lora_weights.safetensors').write_bytes(b'a trained LoRA')
    return home


@pytest.mark.parametrize('verb', ['curate', 'embed', 'train', 'generate', 'evaluate', 'run', 'demo', 'scan'])
@pytest.mark.parametrize('pair', ['lora.rank=0', 'lora.targets=(', 'training.batch_size=0', 'training.precision=int4', 'mapper.tokens=0', 'training.lr_lora=-1', 'num_frames=8', 'subject=..',
                                  'subject=../../x', 'subject=/x', 'subject=', 'subject=.', 'sampling.steps=0', 'nonsense=1', 'seed'])
def test_a_refused_value_changes_no_file(home, verb, pair, capsys, monkeypatch):
    monkeypatch.chdir(home/'notes')
    words = {'curate': [home/'me/photos'], 'scan': [home/'me/photos'], 'run': ['tiny', '--folder', home/'run'], 'demo': ['--folder', home/'run']}.get(verb, [home/'run'])
    before = tree(home)
    assert main([str(word) for word in (verb, *words, pair)]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and said.startswith('faceid: ') and pair.split('=')[0].split('.')[-1] in said, said
    assert tree(home) == before
