"""Reading whatever people have: every format upright and in the right colours, everything else named, and nothing that a file does reaches this process."""
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from pillow_heif import register_heif_opener

from faceid_nb.core.media import write_image
from faceid_nb.curation import photos
from faceid_nb.curation.folder import list_photos, sort_files
from faceid_nb.curation.photos import IDLE, MOST, Decoder, Limits, Unreadable, as_rgb, read_photo, to_srgb

SIZE = (96, 64)
FORMATS = {'jpg': 'JPEG', 'png': 'PNG', 'webp': 'WEBP', 'tif': 'TIFF', 'avif': 'AVIF', 'heic': 'HEIF'}


@pytest.fixture(scope='module', autouse=True)
def formats():
    "For writing; the reader looks after itself"
    Image.init()
    register_heif_opener()


def scene():
    "A smooth picture with a different colour in every corner, so that every turn shows"
    corners = np.array([[[230, 40, 30], [40, 200, 60]], [[30, 60, 220], [240, 230, 200]]], np.uint8)
    return Image.fromarray(corners).resize(SIZE, Image.Resampling.BICUBIC)


def apart(a, b): return np.abs(np.asarray(a, int) - np.asarray(b, int)).mean()


def why(path, *more):
    "The sentence with which a file is refused"
    with pytest.raises(Unreadable) as error: read_photo(path, *more)
    assert str(error.value).startswith(path.name)
    return str(error.value)


def ill(does, **limits):
    "A decoder that falls ill over its photo"
    return Decoder(Limits(**limits), f'import os, time, faceid_nb.curation.photos as p; p.decode = lambda *asked: {does}; p.serve()')


# which way is up

@pytest.mark.parametrize('suffix', FORMATS)
@pytest.mark.parametrize('way', range(1, 9))
def test_every_orientation_once(tmp_path, suffix, way):
    picture = scene()
    exif = picture.getexif()
    exif[0x0112] = way
    picture.save(tmp_path/f'a.{suffix}', exif=exif if suffix == 'tif' else exif.tobytes())
    seen = scene()
    seen.getexif()[0x0112] = way
    assert apart(read_photo(tmp_path/f'a.{suffix}').image, ImageOps.exif_transpose(seen)) < 8


@pytest.mark.parametrize('kind', 'AVIF BMP DDS DIB GIF HEIF JPEG JPEG2000 PCX PNG PPM QOI SGI TGA TIFF WEBP'.split())
def test_every_format_that_can_be_written_here_is_read(tmp_path, kind):
    if kind not in Image.SAVE: pytest.skip(f'this Pillow writes no {kind}')
    suffix = next(s for s, k in Image.registered_extensions().items() if k == kind)
    scene().save(tmp_path/f'a{suffix}', kind)
    photo = read_photo(tmp_path/f'a{suffix}')
    assert apart(photo.image, scene()) < 5 and set(photo.notes) <= {'palette'}


def test_broken_exif_is_noted_and_the_picture_read(tmp_path):
    scene().save(tmp_path/'a.jpg', exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff')
    photo = read_photo(tmp_path/'a.jpg')
    assert apart(photo.image, scene()) < 5


def test_a_truncated_png_is_not_read_by_way_of_its_exif(tmp_path):
    scene().save(tmp_path/'whole.png')
    data = (tmp_path/'whole.png').read_bytes()
    for share in (.3, .7, .95):
        (tmp_path/'cut.png').write_bytes(data[:int(share*len(data))])
        assert 'Copy the photo again' in why(tmp_path/'cut.png')


# depths and colours

def plain_tiff(values, bits, photometric=1, sample=1):
    "A gray TIFF by hand, which no library writes in all these ways"
    data = values.tobytes()
    tags = [(256, 4, values.shape[1]), (257, 4, values.shape[0]), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8), (277, 3, 1),
            (278, 4, values.shape[0]), (279, 4, len(data)), (339, 3, sample)]
    table = b''.join(np.array([tag, kind], '<u2').tobytes() + np.array([1, value], '<u4').tobytes() for tag, kind, value in tags)
    return b'II*\0' + np.array([8 + len(data)], '<u4').tobytes() + data + np.array([len(tags)], '<u2').tobytes() + table + b'\0'*4


@pytest.mark.parametrize('level, bits, photometric, sample, kind, expected', [
    (257*100, 16, 1, 1, '<u2', 100), (30, 16, 1, 1, '<u2', 0), (257*100, 16, 0, 1, '<u2', 155), (128*100, 16, 1, 2, '<i2', 100),
    (2**24*100, 32, 1, 1, '<u4', 99), (.5, 32, 1, 3, '<f4', 128), (7., 32, 1, 3, '<f4', 255)])
def test_deep_gray_is_scaled_by_its_bits_not_by_its_values(tmp_path, level, bits, photometric, sample, kind, expected):
    (tmp_path/'a.tif').write_bytes(plain_tiff(np.full((8, 8), level, kind), bits, photometric, sample))
    assert set(np.unique(read_photo(tmp_path/'a.tif').image)) <= {expected, min(expected + 1, 255)}


@pytest.mark.parametrize('suffix', ['png', 'tif', 'jp2', 'pgm'])
def test_16_bit_gray(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 64*48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path/f'a.{suffix}')
    photo = read_photo(tmp_path/f'a.{suffix}')
    assert np.abs(photo.image[..., 0] - ramp/257).max() <= 1 and ('16 bits' in photo.notes or '32 bits' in photo.notes)


@pytest.mark.parametrize('planar', ['contig', 'separate'])
def test_16_bit_rgb_tiff(tmp_path, planar):
    write = pytest.importorskip('tifffile').imwrite
    deep = np.asarray(scene()).astype(np.uint16)*257
    write(tmp_path/'a.tif', deep if planar == 'contig' else deep.transpose(2, 0, 1), photometric='rgb', planarconfig=planar)
    if planar == 'separate': assert 'separate planes' in why(tmp_path/'a.tif')   # Pillow would read it, and wrongly
    else: assert apart(read_photo(tmp_path/'a.tif').image, scene()) <= 1


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'RGB', 'CMYK', 'YCbCr'])
def test_every_mode_looks_the_same(tmp_path, mode):
    picture = scene().convert(mode)
    picture.save(tmp_path/'a.tif')
    assert apart(read_photo(tmp_path/'a.tif').image, picture.convert('RGB')) < 1


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P'])
def test_what_is_transparent_is_white(tmp_path, mode):
    clear = Image.new('RGBA', SIZE, (200, 0, 0, 0)).convert(mode if mode != 'LA' else 'LA')
    clear.save(tmp_path/'a.png', **({'transparency': clear.getpixel((0, 0))} if mode == 'P' else {}))
    photo = read_photo(tmp_path/'a.png')
    assert photo.image.min() == 255 and 'transparency over white' in photo.notes


def gamma(value):
    "The sRGB profile with another curve"
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    at = icc.index(b'para') + 12
    icc[at:at + 4] = round(value*65536).to_bytes(4, 'big')
    return bytes(icc)


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif', 'avif', 'heic'])
def test_profiles_move_colours_in_every_format(tmp_path, suffix):
    scene().save(tmp_path/f'a.{suffix}', icc_profile=gamma(1.8))
    photo, wanted = read_photo(tmp_path/f'a.{suffix}'), to_srgb(scene(), gamma(1.8))[0]
    assert 'colours moved to sRGB' in photo.notes
    assert apart(photo.image, wanted) < 6 < apart(scene(), wanted)


def test_gray_and_transparent_pictures_use_their_rgb_profile():
    assert as_rgb(with_profile(Image.new('L', SIZE, 100), gamma(1.8)))[0].getpixel((0, 0)) == to_srgb(Image.new('RGB', SIZE, (100, 100, 100)), gamma(1.8))[0].getpixel((0, 0))
    assert as_rgb(with_profile(Image.new('RGBA', SIZE, (100, 100, 100, 0)), gamma(1.8)))[0].getpixel((0, 0)) == (255, 255, 255)


def with_profile(picture, icc):
    picture.info['icc_profile'] = icc
    return picture


@pytest.mark.parametrize('icc', [b'nonsense', gamma(2.4)[:200], b'\0'*128])
def test_a_broken_profile_is_noted(tmp_path, icc):
    scene().save(tmp_path/'a.png', icc_profile=icc)
    photo = read_photo(tmp_path/'a.png')
    assert photo.notes == ('broken colour profile, not used',) and apart(photo.image, scene()) == 0


def test_a_profile_of_another_kind_is_not_used(tmp_path):
    scene().convert('CMYK').save(tmp_path/'a.jpg', icc_profile=gamma(1.8))
    assert read_photo(tmp_path/'a.jpg').notes == ('CMYK', 'broken colour profile, not used')


@pytest.mark.parametrize('suffix', ['gif', 'png', 'webp', 'avif'])
def test_of_an_animation_the_first_frame(tmp_path, suffix):
    frames = [scene(), Image.new('RGB', SIZE, 'black'), Image.new('RGB', SIZE, 'white')]
    frames[0].save(tmp_path/f'a.{suffix}', save_all=True, append_images=frames[1:], duration=100)
    photo = read_photo(tmp_path/f'a.{suffix}')
    assert 'first of 3 frames' in photo.notes and apart(photo.image, scene()) < 12


# names

def test_the_bytes_decide_not_the_name(tmp_path):
    for suffix, kind in FORMATS.items(): scene().save(tmp_path/f'{kind}.dat', kind)
    scene().save(tmp_path/'plain', 'JPEG')
    scene().save(tmp_path/'a.heic', 'PNG')
    (tmp_path/'notes.txt').write_text('BMW, GIF, JPEG')
    (tmp_path/'clip.mov').write_bytes(b'\0\0\0\x14ftypqt  ')
    (tmp_path/'.hidden.jpg').write_bytes(b'x')
    found, others = sort_files(tmp_path)
    assert {p.name for p in found} == {f'{k}.dat' for k in FORMATS.values()} | {'plain', 'a.heic'}
    assert {p.name: why for p, why in others.items()} == {'notes.txt': 'text/plain', 'clip.mov': 'video/quicktime'}
    notes = {p.name: read_photo(p).notes for p in found}
    assert notes['plain'] == ('JPEG without a suffix',) and notes['a.heic'] == ('PNG named .heic',) and all(notes[f'{k}.dat'] == (f'{k} named .dat',) for k in FORMATS.values())


def test_nothing_is_lost_in_silence(tmp_path):
    (tmp_path/'photos'/'below').mkdir(parents=True)
    scene().save(tmp_path/'photos'/'below'/'a.jpg')
    (tmp_path/'photos'/'link').symlink_to(tmp_path)
    (tmp_path/'photos'/'link.jpg').symlink_to(tmp_path)
    (tmp_path/'photos'/b'\xff.jpg'.decode('utf-8', 'surrogateescape')).write_bytes(b'x')
    os.mkfifo(tmp_path/'photos'/'pipe')
    found, others = sort_files(tmp_path/'photos')
    assert [p.name for p in found] == ['a.jpg', 'link.jpg']
    assert sorted(others.values()) == ['a file whose name is not valid UTF-8; rename it', 'a symbolic link', 'not a regular file']
    assert list_photos(tmp_path/'photos') == found


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='root may read everything')
def test_what_may_not_be_opened_is_named(tmp_path):
    scene().save(tmp_path/'a.jpg')
    (tmp_path/'a.jpg').chmod(0)
    assert 'cannot be opened' in why(tmp_path/'a.jpg')


def test_no_photo_at_all_names_what_there_is(tmp_path):
    (tmp_path/'notes.txt').write_text('x')
    with pytest.raises(ValueError, match='no photo.*notes.txt is text/plain'): list_photos(tmp_path)


# refused before decoding

def test_links_devices_pipes_and_sizes(tmp_path):
    scene().save(tmp_path/'a.jpg')
    (tmp_path/'link.jpg').symlink_to(tmp_path/'a.jpg')
    os.mkfifo(tmp_path/'pipe.jpg')
    (tmp_path/'empty.jpg').write_bytes(b'')
    (tmp_path/'folder.jpg').mkdir()
    assert 'symbolic link' in why(tmp_path/'link.jpg')
    assert 'regular' in why(tmp_path/'pipe.jpg') and 'regular' in why(tmp_path/'folder.jpg')
    assert '0 bytes' in why(tmp_path/'empty.jpg')
    assert 'No such file' in why(tmp_path/'gone.jpg')
    assert 'at most 100 are read' in why(tmp_path/'a.jpg', 10**6, Limits(n_bytes=100))
    if Path('/dev/zero').exists(): assert 'regular' in why(Path('/dev/zero'))


@pytest.mark.parametrize('suffix', ['.dng', '.CR2', '.nef', '.tif'])
def test_camera_raw_is_named_and_its_thumbnail_not_taken_for_it(tmp_path, suffix):
    scene().save(tmp_path/f'a{suffix}', 'TIFF', tiffinfo={50706: b'\1\4\0\0'} if suffix == '.tif' else {})
    assert 'camera raw' in why(tmp_path/f'a{suffix}')


def test_no_program_is_started_for_a_picture(tmp_path):
    scene().save(tmp_path/'a.eps')
    (tmp_path/'a.eps').rename(tmp_path/'a.jpg')
    assert 'not a picture that Pillow can read' in why(tmp_path/'a.jpg')


def test_bombs_are_refused(tmp_path):
    Image.new('1', (9000, 9000)).save(tmp_path/'a.png')
    Image.new('1', (9000, 9000)).save(tmp_path/'a.tif', compression='group4')
    (tmp_path/'a.gif').write_bytes(b'GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;')
    inside = (tmp_path/'a.png').read_bytes()
    (tmp_path/'a.ico').write_bytes(b'\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0' + len(inside).to_bytes(4, 'little') + (22).to_bytes(4, 'little') + inside)
    read_photo(save(tmp_path/'warm.png'))
    for name in ('a.png', 'a.tif', 'a.gif', 'a.ico'):
        assert f'at most {MOST} are decoded' in why(tmp_path/name)
    assert read_photo(tmp_path/'a.png', 81_000_000).image.shape == (9000, 9000, 3)
    assert '81000000 pixels' in why(tmp_path/'a.png', 80_999_999)


def save(path):
    scene().save(path)
    return path


# the process apart

def test_a_crash_a_hang_and_a_swelling_are_the_photos_fault():
    for does, limits, said in [('os.abort()', {}, 'SIGABRT'), ('os._exit(3)', {}, 'exit code 3'), ('bytearray(10**11)', {}, 'MemoryError'), ('1/0', {}, 'ZeroDivisionError'),
                               ('[0 for i in iter(int, 1)]', {'seconds': 1, 'memory': 10**12}, '1 seconds of processor time'), ('time.sleep(60)', {'clock': 1}, 'in 1 seconds')]:
        decoder = ill(does, **limits)
        with pytest.raises(Unreadable, match=said): decoder.decode(b'12', 'a.jpg', 100)
        assert not decoder.well
        decoder.stop()


def test_a_dead_decoder_is_replaced_and_a_living_one_kept(tmp_path):
    path = save(tmp_path/'a.png')
    read_photo(path)
    first = IDLE[-1].process.pid
    (tmp_path/'b.jpg').write_text('no picture')
    why(tmp_path/'b.jpg')
    assert read_photo(path).image.shape == (64, 96, 3) and IDLE[-1].process.pid == first
    IDLE.append(ill('os.abort()'))
    assert 'SIGABRT' in why(path)
    assert apart(read_photo(path).image, scene()) == 0 and IDLE[-1].process.pid == first
    os.kill(first, 9)
    IDLE[-1].process.wait()
    assert apart(read_photo(path).image, scene()) == 0 and IDLE[-1].process.pid != first


def test_memory_of_a_photo_is_limited(tmp_path):
    Image.new('RGB', (6000, 5000)).save(tmp_path/'a.png')
    small = Limits(memory=60_000_000)
    assert 'more memory than is allowed' in why(tmp_path/'a.png', 50_000_000, small)
    assert read_photo(save(tmp_path/'b.png'), 50_000_000, small).image.shape == (64, 96, 3)
    assert read_photo(tmp_path/'a.png').image.shape == (5000, 6000, 3)


def test_threads_do_not_share_a_decoder(tmp_path):
    shades = [Image.new('RGB', (40 + i, 30), (i, 2*i, 255 - i)) for i in range(40)]
    for i, shade in enumerate(shades): shade.save(tmp_path/f'{i}.png')
    with ThreadPoolExecutor(4) as pool: read = list(pool.map(lambda i: read_photo(tmp_path/f'{i}.png'), range(40)))
    assert all(apart(photo.image, shade) == 0 for photo, shade in zip(read, shades))
    assert len({d.process.pid for d in IDLE}) == len(IDLE) <= 6


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork here')
def test_a_forked_process_gets_a_decoder_of_its_own(tmp_path):
    script = f'''import os, sys; from faceid_nb.curation.photos import IDLE, read_photo
read_photo({str(save(tmp_path/"a.png"))!r}); mother = IDLE[0].process.pid
child = os.fork()
if not child: read_photo({str(tmp_path/"a.png")!r}); os._exit(0 if IDLE[0].process.pid != mother else 1)
assert os.waitpid(child, 0)[1] == 0; read_photo({str(tmp_path/"a.png")!r}); assert IDLE[0].process.pid == mother'''
    subprocess.run([sys.executable, '-c', script], check=True, timeout=60)


def test_no_decoder_outlives_its_program(tmp_path):
    script = f'from faceid_nb.curation.photos import IDLE, read_photo; read_photo({str(save(tmp_path/"a.png"))!r}); print(IDLE[0].process.pid, flush=True)'
    for end in ('', '; import os; os.kill(os.getpid(), 9)'):
        pid = int(subprocess.run([sys.executable, '-c', script + end], capture_output=True, text=True, timeout=60).stdout)
        for _ in range(50):
            if not alive(pid): break
            time.sleep(.1)
        assert not alive(pid)


def alive(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    state = Path(f'/proc/{pid}/stat')
    return not state.exists() or state.read_text().rsplit(')', 1)[1].split()[0] != 'Z'


def test_a_script_without_a_main_guard_reads(tmp_path):
    "The process apart does not run the script again, as a spawned one of multiprocessing would"
    (tmp_path/'script.py').write_text(f'from faceid_nb.curation.photos import read_photo\nprint("once", read_photo({str(save(tmp_path/"a.png"))!r}).image.shape)\n')
    done = subprocess.run([sys.executable, tmp_path/'script.py'], capture_output=True, text=True, timeout=60)
    assert done.stdout == 'once (64, 96, 3)\n', done.stderr


def test_the_decoding_process_is_light(tmp_path):
    "No torch, no scipy: it starts in a fraction of a second"
    done = subprocess.run([sys.executable, '-c', 'import sys, faceid_nb.curation.photos; print(*sorted({m.split(".")[0] for m in sys.modules} & {"torch", "scipy", "cv2", "matplotlib", "onnxruntime"}))'],
                          capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == '', done.stdout + done.stderr


def test_without_the_plug_in_the_reason_says_what_to_install(tmp_path, monkeypatch):
    scene().save(tmp_path/'a.heic')
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    with pytest.raises(Unreadable, match='pip install pillow-heif'): photos.decode((tmp_path/'a.heic').read_bytes(), 'a.heic')


# what does not travel

@pytest.mark.parametrize('suffix', ['png', 'jpg', 'webp', 'tif', 'avif'])
def test_nothing_of_the_exif_travels(tmp_path, suffix):
    "A photo that knows where, when, with what and by whom; a picture written from it knows nothing"
    picture = scene()
    exif = picture.getexif()
    exif[0x010F], exif[0x013B], exif[0x0112] = 'Secret Camera', 'Secret Person', 6
    exif.get_ifd(0x8825).update({1: 'N', 2: (48., 12., 30.), 3: 'E', 4: (16., 22., 0.)})
    picture.save(tmp_path/'photo.jpg', exif=exif, comment=b'Secret words', xmp=b'<x:xmpmeta>Secret place</x:xmpmeta>', icc_profile=gamma(1.8))
    assert (tmp_path/'photo.jpg').read_bytes().count(b'Secret') == 4
    photo = read_photo(tmp_path/'photo.jpg')
    written = write_image(tmp_path/f'crop.{suffix}', photo.image)
    with Image.open(written) as found:
        assert set(dict(found.getexif())) <= {256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 339} and not dict(found.getexif().get_ifd(0x8825))   # a TIFF needs its sizes
        assert not {'comment', 'xmp', 'icc_profile', 'XML:com.adobe.xmp'} & set(found.info)
    assert b'Secret' not in written.read_bytes() and 'Secret' not in json.dumps(photo.notes)


def test_nothing_of_the_exif_is_in_a_curated_folder(tmp_path):
    from test_curation import CONFIG, CROP, ByColour, draw
    from faceid_nb.curation.manifest import curate
    (tmp_path/'photos').mkdir()
    for i in range(6):
        draw(tmp_path/'photos'/f'{i}.png', i)
        with Image.open(tmp_path/'photos'/f'{i}.png') as picture:
            exif = picture.getexif()
            exif[0x010F] = 'Secret Camera'
            exif.get_ifd(0x8825)[2] = (48., 12., 30.)
            picture.save(tmp_path/'photos'/f'{i}.jpg', exif=exif, quality=95)
        (tmp_path/'photos'/f'{i}.png').unlink()
    curate(tmp_path/'photos', ByColour(), CONFIG, tmp_path/'out', CROP, progress=False)
    written = [p for p in (tmp_path/'out').rglob('*') if p.is_file()]
    assert len(written) >= 8
    for path in written:
        assert b'Secret' not in path.read_bytes(), path
        if path.suffix != '.json':
            with Image.open(path) as found: assert not dict(found.getexif()), path


# real files

REFUSED = {'200MP.heic': '199756800 pixels', 'multiple_exif.jpg': '1 x 1 pixels, too small', 'corrupted.heic': 'not a picture', 'decompression_bomb.gif': 'pixels', 'decompression_bomb.ico': 'pixels',
           'crash-1152ec2d1a1a71395b6f2ce6721c38924d025bf3.tif': 'decoder error', 'truncated_end_chunk.png': 'Truncated File Read'}


def test_every_real_file_is_read_or_named(assets):
    "formats/, hard/, no_face/ and art_nonhuman/ of the real photos, with the memory of everything that reads them"
    script = f'''import json, resource, sys; from pathlib import Path; from faceid_nb.curation.photos import *; from faceid_nb.curation.folder import Unreadable, sort_files
read, refused, others = {{}}, {{}}, {{}}
for group in ('formats', 'hard', 'no_face', 'art_nonhuman'):
    found, left = sort_files(Path({str(assets/"photos")!r})/group)
    others |= {{p.name: why for p, why in left.items()}}
    for p in found:
        try: read[p.name] = read_photo(p).notes
        except Unreadable as error: refused[p.name] = str(error)
IDLE.pop().stop()
own = [int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')] if sys.platform == 'linux' else []  # ru_maxrss there counts who started us as well
peak = (own or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0] + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([read, refused, others, peak]))'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    read, refused, others, peak = json.loads(done.stdout)
    print(f'{len(read)} read, {len(refused)} refused, {len(others)} other, peak {peak/1e6:.2f} GB')
    assert set(refused) == set(REFUSED) and all(REFUSED[n] in said for n, said in refused.items())
    assert list(others) == ['lfw_subset.npy'] and len(read) + len(refused) + 1 == sum(1 for g in ('formats', 'hard', 'no_face', 'art_nonhuman') for _ in (assets/'photos'/g).iterdir())
    assert peak < 1.5e6 * (1 if sys.platform != 'darwin' else 1024)
    assert read['if_jntm.jpg'][0] == 'PNG named .jpg' and 'CMYK' in read['pil_sample_cmyk.jpg'] and 'first of 4 pictures' in read['bird_burst.heic']


def test_real_turned_pictures_are_upright(assets):
    "The same landscape in five containers, each turned another way; and the XMP of an AVIF, which does not count"
    read = [read_photo(p).image for p in sorted((assets/'photos'/'formats').glob('avif_rot*.avif'))]
    assert len(read) == 5 and all(i.shape == (427, 640, 3) for i in read)
    sky = [i[:60].mean(0).mean(0) - i[-60:].mean(0).mean(0) for i in read]
    assert all(s[2] > 60 for s in sky)
    assert read_photo(assets/'photos'/'formats'/'avif_xmp_tags_orientation.avif').notes == ('colours moved to sRGB',)
