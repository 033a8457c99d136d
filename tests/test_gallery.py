"""The wall of photos, driven through its widgets: what a click or a key does to the manifest on the disk. The page script itself was tried in a browser, see LOG.md."""
import io
import json

import pytest
from PIL import Image
from test_curation import CONFIG, CROP, ByColour, draw

from faceid_nb.app.widgets import KEYS, key_listener, photo_picker, verdict_line
from faceid_nb.curation.manifest import curate, load_manifest
from faceid_nb.curation.select import extract_features


class Folder:
    "A curated folder whose decisions are carried out by curating again with remembered looks"
    def __init__(self, place):
        self.photos, self.out, self.hand, self.all_features, self.calls = place/'photos', place/'out', {}, {}, []
        self.photos.mkdir()
        for i in range(8): draw(self.photos/f'ann{i}.png', i)
        draw(self.photos/'nobody.png', 51, ())
        draw(self.photos/'tall.png', 54, (('ann', 20, 60, 90), ('bob', 180, 60, 85)))
        (self.photos/'zz_broken.jpg').write_bytes(b'not a picture')
        self.manifest = self.run({})

    def extract(self, path, *rest):
        if path not in self.all_features: self.all_features[path] = extract_features(path, *rest)
        return self.all_features[path]

    def run(self, hand): return curate(self.photos, ByColour(), CONFIG, self.out, CROP, progress=False, extract=self.extract, by_hand=hand)

    def decide(self, file, keep):
        self.calls.append((file, keep))
        manifest = self.run(self.hand | {file: keep})
        self.hand[file] = keep
        return manifest

    def on_disk(self): return {p['file']: (p['status'], p['reason']) for p in json.loads((self.out/'manifest.json').read_text())['photos']}


@pytest.fixture
def folder(tmp_path): return Folder(tmp_path)


@pytest.fixture
def panel(folder): return photo_picker(folder.manifest, folder.photos, folder.decide, columns=4)


def test_every_photo_has_thumbnail_reason_and_number(panel, folder):
    assert list(panel.buttons) == list(panel.cells) == [p.file for p in folder.manifest.photos]
    for record in folder.manifest.photos:
        picture, button = panel.cells[record.file].children
        assert Image.open(io.BytesIO(picture.value)).format == 'JPEG'
        assert button.description == verdict_line(record) and button.tooltip == record.text
        assert (record.reason or record.split) in button.description and any(c.isdigit() for c in button.description)
        assert button.button_style == ('success' if record.status == 'kept' else 'danger')
    assert '8 of 11 photos kept' in panel.note.value


def test_keys_are_clicks_on_buttons_that_exist(panel):
    "Each name that the script looks for is a class of a button"
    assert set(KEYS.values()) == set(panel.keys)
    for name, button in panel.keys.items(): assert f'faceid-{name}' in button._dom_classes
    assert 'faceid-photos' in panel.box._dom_classes and 'faceid-at' in panel.at._dom_classes
    assert all('faceid-cell' in cell._dom_classes for cell in panel.cells.values())
    script = key_listener().outputs[0]['data']['application/javascript']
    assert 'lmSuppressShortcuts' in script and '%s' not in script and script.count('{') == script.count('}')
    assert any(set(child.outputs[0]['data']) == {'application/javascript'} for child in panel.box.children if hasattr(child, 'outputs'))


def test_walking(panel):
    files = [p.file for p in panel.manifest.photos]
    go = lambda *names: [panel.keys[name].click() for name in names]
    go('next', 'next', 'previous')
    assert panel.photo.file == files[1] and files[1] in panel.words.value
    go('down')
    assert panel.photo.file == files[5]
    go('up', 'up')
    assert panel.photo.file == files[0], 'at the edge one stays'
    panel.at.value = 11
    go('next')
    assert panel.photo.file == files[10]
    here = [f for f, cell in panel.cells.items() if 'faceid-here' in cell._dom_classes]
    assert here == [files[10]] and panel.picture.value == panel.cells[files[10]].children[0].value


def test_reject_accept_turn_undo_reach_the_disk(panel, folder):
    before = folder.on_disk()
    panel.keys['reject'].click()
    assert folder.on_disk()['ann0.png'] == ('rejected', 'by_hand') and panel.buttons['ann0.png'].description == 'by hand'
    panel.keys['reject'].click()
    assert len(folder.calls) == 1, 'rejecting twice is once'
    panel.keys['undo'].click()
    assert folder.on_disk() == before and folder.hand == {'ann0.png': None}
    panel.keys['turn'].click()
    panel.keys['accept'].click()
    assert folder.on_disk()['ann0.png'] == ('kept', None)
    assert load_manifest(folder.out) == panel.manifest


def test_a_rejected_photo_taken_in_and_back_has_its_old_reason(panel, folder):
    before = folder.on_disk()
    assert before['tall.png'] == ('rejected', 'multi_face')
    panel.buttons['tall.png'].click()
    assert folder.on_disk()['tall.png'] == ('kept', None) and 'by hand' in panel.buttons['tall.png'].tooltip
    panel.at.value = 1
    panel.keys['undo'].click()
    assert folder.on_disk() == before and panel.photo.file == 'tall.png', 'undo goes where it changed something'


def test_undo_is_as_deep_as_what_was_done(panel, folder):
    before = folder.on_disk()
    for file in ('ann0.png', 'tall.png', 'ann3.png'): panel.buttons[file].click()
    for _ in range(3): panel.keys['undo'].click()
    assert folder.on_disk() == before
    panel.keys['undo'].click()
    assert panel.note.value == 'nothing to undo'


@pytest.mark.parametrize('file', ['nobody.png', 'zz_broken.jpg'])
def test_what_cannot_be_accepted_says_so_and_changes_nothing(panel, folder, file):
    before = (folder.out/'manifest.json').read_bytes()
    panel.buttons[file].click()
    assert 'cannot be accepted' in panel.note.value and (folder.out/'manifest.json').read_bytes() == before and panel.done == []
    panel.keys['next'].click()
    assert '8 of 11 photos kept' in panel.note.value


def test_too_few_photos_left_is_an_error_in_the_note(panel, folder):
    for i in range(8): panel.buttons[f'ann{i}.png'].click()
    assert 'at least 3 are needed' in panel.note.value
    assert sum(status == 'kept' for status, _ in folder.on_disk().values()) == 3


def test_names_cannot_speak_html(tmp_path):
    folder = Folder(tmp_path)
    draw(folder.photos/'<b onclick=1>&.png', 70)
    panel = photo_picker(folder.run({}), folder.photos, folder.decide)
    panel.at.value = 1 + [p.file for p in panel.manifest.photos].index('<b onclick=1>&.png')
    assert '<b onclick' not in panel.words.value and '&lt;b onclick' in panel.words.value


def test_the_manifest_is_never_half_there(panel, folder, monkeypatch):
    import faceid_nb.curation.manifest as module
    before = (folder.out/'manifest.json').read_bytes()
    def full(fig, path): raise ValueError('The disk is full: nothing could be written.')
    monkeypatch.setattr(module, 'save_figure', full)
    panel.keys['reject'].click()
    assert 'disk is full' in panel.note.value and (folder.out/'manifest.json').read_bytes() == before
    assert panel.photo.status == 'kept'
