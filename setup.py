"""The package as pip sees it: everything that may change is read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
lib = cfg['lib_path']

setup(
    version=cfg['version'], description=cfg['description'], license='Apache-2.0', author=cfg['author'], author_email=cfg['author_email'],
    keywords=cfg['keywords'].split(), url=cfg['git_url'],
    project_urls={'Source': cfg['git_url'], 'Changes': f"{cfg['git_url']}/blob/main/CHANGELOG.md"},
    classifiers=['Development Status :: 4 - Beta', 'Environment :: Console', 'Framework :: Jupyter', 'Intended Audience :: Science/Research',
                 'Operating System :: MacOS', 'Operating System :: POSIX :: Linux', 'Programming Language :: Python :: 3 :: Only',
                 'Topic :: Multimedia :: Video', 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Typing :: Typed'],
    packages=find_packages(include=[lib, f'{lib}.*']) + [f'{lib}.notebooks'],
    package_dir={f'{lib}.notebooks': 'nbs/runs'},
    package_data={lib: ['py.typed', 'world/weights/**/*'], f'{lib}.notebooks': ['*.ipynb']}, include_package_data=False,
    install_requires=cfg['requirements'].split(),
    extras_require={name: cfg[f'{name}_requirements'].split() for name in ('lab', 'scale', 'track', 'dev', 'docs')},
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']})
