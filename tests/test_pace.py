"""The pace of curation against the loop that everybody writes, on real photos; nothing else runs meanwhile."""
import shutil
import time

import pytest

from faceid_nb.curation import faces as finding
from faceid_nb.curation.cache import KeptLooks
from faceid_nb.curation.faces import open_faces
from faceid_nb.curation.photos import list_photos
from faceid_nb.curation.select import CurationConfig, look_at

MEASURED = CurationConfig(same_person=.40)


@pytest.mark.alone
@pytest.mark.parametrize('groups', [('lfw_10x10',), ('subject_A', 'others'), ('subject_A', 'others', 'groups', 'hard', 'no_face', 'art_nonhuman')])
def test_pace_against_the_plain_loop(assets, real_pack, tmp_path, groups):
    """The plain loop: cv2.imread and FaceAnalysis.get of the same pack (detection and recognition, 640 x 640, its own number of threads), nothing measured or kept.
    Ours: hash, decode in a process apart, find with turns, measure, thumbnail and write down. In turns, in one run; the best of three each, for the machine has other guests."""
    cv2 = pytest.importorskip('cv2')
    from insightface.app import FaceAnalysis
    root, name = real_pack
    album = tmp_path/'album'
    for group in groups: shutil.copytree(assets/'photos'/group, album/group)
    photos = list_photos(album)
    with finding.hushed(): app = FaceAnalysis(str(root/'models'/name), allowed_modules=['detection', 'recognition'], providers=['CPUExecutionProvider'])
    app.prepare(ctx_id=-1, det_size=(640, 640))
    faces, seconds = open_faces(root, name), {'plain': [], 'cold': [], 'warm': []}

    def clocked(what, work):
        start = time.perf_counter()
        work()
        seconds[what].append(time.perf_counter() - start)

    def plain():
        with finding.hushed():
            for p in photos: app.get(cv2.imread(str(p)))

    def ours(place):
        with KeptLooks(place) as look:
            for p in photos: look(p, album, faces, MEASURED)
    look_at(photos[0], album, faces, MEASURED)  # starts the decoder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('warnings.warn', lambda *_, **__: None)
        for i in range(3):
            clocked('plain', plain)
            clocked('cold', lambda: ours(tmp_path/f'looks{i}'))
            clocked('warm', lambda: ours(tmp_path/f'looks{i}'))
    best = {k: min(v) for k, v in seconds.items()}
    print(f'{len(photos)} photos: plain {len(photos)/best["plain"]:.1f} a second, ours {best["plain"]/best["cold"]:.2f} x cold, {best["plain"]/best["warm"]:.0f} x again')
    assert best['plain']/best['cold'] >= 1 and best['plain']/best['warm'] >= 20
