"""Measure the pace of this project on this machine: curation, refusals, the help page and, when asked, a whole demo.

    python benchmarks/pace.py
    python benchmarks/pace.py --photos FOLDER --pack-root FOLDER --pack NAME --sides 640
    python benchmarks/pace.py --demo

Nothing else should run meanwhile. Each figure is the best of several turns, because a machine has other guests."""
import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
from insightface.app import FaceAnalysis
from PIL import Image

from faceid_nb.app.cli import main as faceid
from faceid_nb.core.files import read_json
from faceid_nb.curation.cache import FeatureCache
from faceid_nb.curation.faces import FaceFinder
from faceid_nb.curation.packs import silence_insightface, open_faces
from faceid_nb.curation.folder import list_photos
from faceid_nb.curation.photos import Unreadable, read_photo
from faceid_nb.curation.select import CurationConfig, extract_features
from faceid_nb.world.shipped import tiny_pack

ROOT = Path(__file__).resolve().parent.parent
MEASURED = CurationConfig(same_person=.4)


def clocked(
    work:Callable[[], object],  # What to time
)->float:                       # Wall clock, s
    "Time one call"
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def plain_loop(
    app:FaceAnalysis,   # Detector and recogniser of insightface
    photos:list[Path],
):
    "Read and analyse every photo as most scripts do: nothing is checked, measured or kept"
    with silence_insightface():
        for photo in photos:
            image = cv2.imread(str(photo))
            if image is not None:
                app.get(image)


def our_loop(
    place:Path,         # Where the looks are kept
    album:Path,
    photos:list[Path],
    faces:FaceFinder,
):
    "Hash, decode apart, find, measure and write down every photo"
    with FeatureCache(place) as features:
        for photo in photos:
            features(photo, album, faces, MEASURED)


def curation(
    album:Path,             # Photos
    root:Path,              # Folder that holds `models/name`
    name:str,               # Name of the face pack
    sides:tuple[int, ...],  # Sides of the squares the detector looks at, pixels
    turns:int = 3,          # Turns of each
):
    "Print the pace of curation beside that of the plain loop with the same pack"
    photos = list_photos(album)
    with silence_insightface():
        app = FaceAnalysis(str(root/'models'/name), allowed_modules=['detection', 'recognition'],
            providers=['CPUExecutionProvider'])
    app.prepare(ctx_id=-1, det_size=(max(sides), max(sides)))
    faces = open_faces(root, name, det_size=tuple((side, side) for side in sides))
    extract_features(photos[0], album, faces, MEASURED)  # starts the decoder
    seconds = {'plain': [], 'cold': [], 'warm': []}
    with TemporaryDirectory() as scratch:
        for turn in range(turns):
            ours = partial(our_loop, Path(scratch)/f'{turn}', album, photos, faces)
            seconds['plain'].append(clocked(partial(plain_loop, app, photos)))
            seconds['cold'].append(clocked(ours))
            seconds['warm'].append(clocked(ours))
    plain, cold, warm = (min(seconds[kind]) for kind in seconds)
    print(f'curation of {len(photos)} photos: plain loop {len(photos)/plain:.1f} photos a second, '
          f'ours {plain/cold:.2f} times as fast, {plain/warm:.0f} times the second time')


def refusals():
    "Print how long a picture that swells takes to be refused"
    with TemporaryDirectory() as scratch:
        for name, options in {'bomb.png': {}, 'bomb.tif': {'compression': 'group4'}}.items():
            path = Path(scratch)/name
            Image.new('1', (9000, 9000)).save(path, **options)
            times = []
            for _ in range(3):
                start = time.perf_counter()
                try:
                    read_photo(path)
                except Unreadable:
                    times.append(time.perf_counter() - start)
            print(f'{name}, 81 million pixels in {path.stat().st_size} bytes: refused in {min(times):.3f} s')


def help_page():
    "Print how long the help page takes"
    code = 'from faceid_nb.app.cli import main; main(["--help"])'
    run = partial(subprocess.run, [sys.executable, '-c', code], stdout=subprocess.DEVNULL, check=True)
    print(f'faceid --help: {min(clocked(run) for _ in range(3)):.2f} s')


def demo():
    "Print the seconds of each phase of the demo"
    with TemporaryDirectory() as scratch:
        assert faceid(['demo', '--folder', f'{scratch}/demo']) == 0
        seconds = read_json(Path(scratch)/'demo'/'summary.json')['seconds']
    print('demo: ' + ', '.join(f'{name} {took:.0f} s' for name, took in seconds.items()))


def main():
    root, name = tiny_pack()
    parser = argparse.ArgumentParser(description='Measure the pace of this project on this machine.')
    parser.add_argument('--photos', type=Path, default=ROOT/'data', help='folder of photos (default: the sample)')
    parser.add_argument('--pack-root', type=Path, default=root,
        help='folder that holds models/NAME with the face models')
    parser.add_argument('--pack', default=name, help='name of the face pack')
    parser.add_argument('--sides', type=int, nargs='+', default=[192, 384],
        help='sides of the squares the detector looks at, pixels')
    parser.add_argument('--demo', action='store_true', help='run the whole demo as well (minutes)')
    asked = parser.parse_args()
    warnings.simplefilter('ignore')
    help_page()
    refusals()
    curation(asked.photos, asked.pack_root, asked.pack, tuple(asked.sides))
    if asked.demo:
        demo()


if __name__ == '__main__':
    main()
