"""Files made to break the check: each is one clear problem, and never a traceback."""

import json

import pytest
from PIL import Image

from risf_core.data.check import main
from tests.data.coco_files import box_entry, image_entry, write_files
from tests.data.voc_files import write_pair, xml_text

HOSTILE = {
    "list": b"[1, 2]",
    "empty": b"",
    "cut": b'{"images": [{"id": 1',
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "huge number": b'{"images": [' + b"9" * 5000 + b"]}",
    "null": b"null",
    "nested nulls": b'{"images": [null, [null]], "annotations": {"a": null}, "categories": [null]}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_coco_file_is_one_problem(tmp_path, capsys, name):
    path = tmp_path / "a.json"
    path.write_bytes(HOSTILE[name])
    assert main([str(path), str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{path}: ") and "1 problem: 1 unreadable file" in lines[1]


STRANGE = [None, [], {}, "", "x", -1, 0, 1.5, True, 10**30, float("nan"), float("inf"), -0.0, 2**62, [None], {"id": []},
           "\ud800", "\x1b[2J", "a" * 5000, "../..", "\0"]  # fmt: skip


def test_strange_values_are_problems_and_never_tracebacks(tmp_path, capsys):
    """Every value in every field of every list, one file with all of them; what passes is what means something."""
    fields = {
        "images": image_entry(0) | {"license": 0},
        "annotations": box_entry(0, 1, 1) | {"area": 5, "segmentation": []},
        "categories": {"id": 50, "name": "other"},
    }
    content = {"images": [image_entry(1)], "annotations": [box_entry(1, 1, 1)], "categories": []}
    content["categories"].append({"id": 1, "name": "cat"})
    number = 100
    for name, entry in fields.items():
        content[name] += STRANGE
        for key in entry:
            for value in STRANGE:
                number += 1
                own = {"file_name": f"{number}.png"} if name == "images" else {}
                own |= {"name": f"class {number}"} if name == "categories" else {}
                content[name].append(entry | {"id": number} | own | {key: value})
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert main([str(path), str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > 280 and f"{len(printed) - 1} problems" in printed[-1]
    assert all(line.isprintable() and len(line) < 1000 for line in printed)


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\ud800b"])
def test_names_that_no_screen_or_file_can_hold_are_refused(tmp_path, capsys, name):
    path = write_files(tmp_path, [image_entry(1)], [], [{"id": 1, "name": name}])
    assert main([str(path), str(tmp_path)]) == 1
    assert "expected no control characters" in capsys.readouterr().out


def test_names_with_signs_of_other_languages_are_right(tmp_path):
    """The last one is the blank that some systems write into the names of screenshots."""
    images = [
        image_entry(n, file_name=name) for n, name in enumerate(("зебра.png", "斑马.png", "9\u202fPM.png"))
    ]
    path = write_files(tmp_path, images, [box_entry(1, 1, 1)], [{"id": 1, "name": "slon\u00edk \U0001f418"}])
    assert main([str(path), str(tmp_path)]) == 0


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
)
HOSTILE_XML = {
    "bomb": f"{BOMB}]><annotation>&j;</annotation>".encode(),
    "file": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
    "encoding": b'<?xml version="1.0" encoding="klingon"?><annotation/>',
    "zero": b"<annotation>\0</annotation>",
    "binary": bytes(range(256)),
    "empty": b"",
    "json": b'{"images": []}',
}


@pytest.mark.parametrize("name", HOSTILE_XML)
def test_a_file_that_is_no_xml_is_one_problem(tmp_path, capsys, name):
    write_pair(tmp_path, "a", [])
    (tmp_path / "a.xml").write_bytes(HOSTILE_XML[name])
    assert main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{tmp_path / 'a.xml'}: not readable as XML")


def test_deep_and_strange_xml_is_no_traceback(tmp_path, capsys):
    write_pair(tmp_path, "deep", [])
    (tmp_path / "deep.xml").write_text(f"<annotation>{'<a>' * 50_000}{'</a>' * 50_000}</annotation>")
    write_pair(tmp_path, "strange", [("a\u2028b", (1, 1, "9" * 400, 9)), ("c", ("0x1", "", "1_0", "\u0665"))])
    for number, width in enumerate(("1e300", "1e19", "9" * 400)):
        write_pair(tmp_path, f"wide{number}", [])
        text = xml_text([("ace", (1, 1, 1e200, 9))]).replace("<width>40", f"<width>{width}")
        (tmp_path / f"wide{number}.xml").write_text(text)
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert all(len(line) < 500 for line in printed.splitlines())
    assert "wide0.xml: size is 1e+300x30" in printed and "wide2.xml: size/width is '999" in printed
    assert "deep.xml: has no 'size/width'" in printed and "strange.xml: object 1" in printed
