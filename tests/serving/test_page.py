"""The shell of every page: whatever is put in as text stays text."""

from __future__ import annotations

from html.parser import HTMLParser

from levi_serving.page import element, page, table


class Read(HTMLParser):
    """The texts and attributes of a page, and whether every element is closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts, self.attributes = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_is_closed_and_its_texts_are_escaped():
    html = page("a <b> & c", [element("p", "1 < 2", title='"quoted"', data_from="0")], style=".x {}", script="run()")
    read = Read(html)
    assert read.open == []
    assert read.texts.count("a <b> & c") == 2  # title and heading
    assert "1 < 2" in read.texts
    assert {("title", '"quoted"'), ("data-from", "0")} <= set(read.attributes)
    assert "run()" in read.texts
    assert "http" not in html


def test_a_table_has_a_row_each():
    read = Read(table(["part", "ms"], [["<all>", "1.0"], ["run", "0.5"]]))
    assert read.texts == ["part", "ms", "<all>", "1.0", "run", "0.5"]
