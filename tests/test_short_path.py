"The short path through the book: it is marked, its links lead on, and each question is answered where the list says"
import json
import re

import pytest

PATH = '### The short path'


def texts(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown']


@pytest.fixture(scope='module')
def short(root):
    "List the chapters of the short path, in order"
    said, = (text for text in texts(root/'nbs/index.ipynb') if text.startswith(PATH))
    return re.findall(r'^\d+\. \[[^\]]+\]\(([^)]+)\.ipynb\)', said, re.M)


@pytest.fixture(scope='module')
def questions(root):
    "Read the list: question, chapter, heading"
    lines = (root/'tests/questions.md').read_text(encoding='utf-8').splitlines()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if re.match(r'\|\s*\d+ \|', line)]
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1))
    return [row[1:] for row in rows]


def test_the_path_takes_two_hours(short):
    assert 10 <= len(short) <= 16 and len(set(short)) == len(short)
    numbers = [chapter.split('/')[1][:2] for chapter in short]
    assert numbers == sorted(numbers)  # Nothing is needed before it is taught


def test_each_chapter_of_the_path_leads_to_the_next(root, short):
    for i, chapter in enumerate(short):
        mark, = (text for text in texts(root/'nbs'/f'{chapter}.ipynb') if text.startswith('*Short path'))
        assert f'{i + 1} of {len(short)}' in mark, chapter
        before, after = re.search(r'before: \[[^\]]+\]\(\.\./([^)]+)\.ipynb', mark), re.search(r'next: \[[^\]]+\]\(\.\./([^)]+)\.ipynb', mark)
        assert (before and before[1]) == (short[i - 1] if i else None), chapter
        assert (after and after[1]) == (short[i + 1] if i + 1 < len(short) else None), chapter


def test_no_other_chapter_is_marked(root, short):
    marked = {path.relative_to(root/'nbs').with_suffix('').as_posix() for path in (root/'nbs').rglob('[0-9][0-9]_*.ipynb')
              if any(text.startswith('*Short path') for text in texts(path))}
    assert marked == set(short)


def test_every_question_is_answered_on_the_path(root, short, questions):
    assert len(questions) >= 20 and len({question for question, *_ in questions}) == len(questions)
    answered = [(chapter, heading) for _, chapter, heading in questions if chapter]
    assert len(answered) >= 17
    for chapter, heading in answered:
        assert chapter in short, chapter
        headings = [line.lstrip('# ') for text in texts(root/'nbs'/f'{chapter}.ipynb') for line in text.splitlines()
                    if re.match(r'#{2,4} ', line)]
        assert heading in headings, (chapter, heading)
    unused = set(short) - {chapter for chapter, _ in answered}
    assert not unused, f'on the path, but no question needs them: {unused}'


def test_chapters_that_answer_nothing_yet_are_few(questions):
    assert sum(not chapter for _, chapter, _ in questions) <= 3
