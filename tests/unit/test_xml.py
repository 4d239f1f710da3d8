"""Documents from outside are read under limits and refused when they are not plain; ours are well-formed."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from vosfs.errors import InvalidArgument, InvalidURI, TooLarge, TypeNotSupported, VOSpaceError
from vosfs.metadata import xml
from vosfs.metadata.node import CONTAINER, CORE, DATA, LINK, Node
from vosfs.metadata.xml import NS, XSI

NODE = Node(
    5, DATA, 3, 42, 0o644, 1, 2, 1, 0, 1_600_000_000_123_456_789, 0, 0, "bob<&>", b"", 1, "g&1", "g2", 1, "a/b", "ff"
)
CLEAN = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\ufffe\uffff"), max_size=20)


def document(inner: str = "", attributes: str = 'uri="vos://a/b" xsi:type="vos:DataNode"', head: str = "") -> bytes:
    """A node document."""
    return f'{head}<vos:node xmlns:vos="{NS}" xmlns:xsi="{XSI}" {attributes}>{inner}</vos:node>'.encode()


def properties(*elements: str) -> str:
    return f"<vos:properties>{''.join(elements)}</vos:properties>"


# -- what is refused -------------------------------------------------------------------------------------------------

BOMB = (
    '<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1 if n > 1 else str()};" * 10}">' for n in range(1, 10))
    + "]>"
)
DECLARATIONS = {
    "doctype": "<!DOCTYPE node>",
    "bomb": BOMB,
    "external": '<!DOCTYPE n [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    "parameter": '<!DOCTYPE n [<!ENTITY % x SYSTEM "http://127.0.0.1:1/x"> %x;]>',
    "external subset": '<!DOCTYPE n SYSTEM "http://127.0.0.1:1/x.dtd">',
}


@pytest.mark.parametrize("declaration", DECLARATIONS.values(), ids=DECLARATIONS.keys())
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "cp037"])
def test_a_document_type_is_refused_in_every_encoding(declaration: str, encoding: str) -> None:
    head = f'<?xml version="1.0" encoding="{encoding}"?>' if encoding in ("utf-8", "cp037") else ""
    text = document("&x;" if "x" in declaration else "&a9;", head=head + declaration).decode()
    with pytest.raises(InvalidArgument) as caught:
        xml.parse_node(text.encode(encoding))
    assert "root:" not in str(caught.value)


@pytest.mark.parametrize("case", ["utf-16", "utf-8-sig"])
def test_other_encodings_are_read(case: str) -> None:
    assert xml.parse_node(document().decode().encode(case)).uri == "vos://a/b"


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"<", b"not xml", b"<a>", b"<a></b>", b"<a/><b/>", b"\xff\xfe", b"\0", b"<a b=1/>", b"<a>&amp</a>",
        b"<a>&unknown;</a>", b"<a>\x01</a>", b"<a>\xff</a>", b'<?xml version="1.0" encoding="klingon"?><a/>',
        b"<v:node/>", b"<" * 5000, b"<a>" * 5000,
    ],
)  # fmt: skip
def test_what_is_not_well_formed_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument):
        xml.parse_node(body)


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_any_bytes_are_refused_with_our_errors(body: bytes) -> None:
    with pytest.raises(VOSpaceError):
        xml.parse_node(body)
    with pytest.raises(VOSpaceError):
        xml.parse_transfer(body)


def test_limits() -> None:
    with pytest.raises(TooLarge):
        xml.parse(document(" " * xml.DOCUMENT_BYTES_MAX))
    most = [f'<vos:property uri="urn:{n}">v</vos:property>' for n in range(xml.PROPERTIES_MAX)]
    assert len(xml.parse_node(document(properties(*most))).properties) == xml.PROPERTIES_MAX
    with pytest.raises(InvalidArgument):
        xml.parse_node(document(properties(*most, '<vos:property uri="urn:x">v</vos:property>')))
    long = "é" * (xml.VALUE_BYTES_MAX // 2)
    assert xml.parse_node(document(properties(f'<vos:property uri="urn:x">{long}</vos:property>'))).properties == {
        "urn:x": long
    }
    with pytest.raises(InvalidArgument):
        xml.parse_node(document(properties(f'<vos:property uri="urn:x">{long}x</vos:property>')))


@pytest.mark.parametrize("root", ["node", "transfer"])
@pytest.mark.parametrize("space", ["", "http://www.ivoa.net/xml/VOSpace/v1.0", NS + "/", NS.upper()])
def test_a_wrong_namespace_is_refused(root: str, space: str) -> None:
    body = f'<{root} xmlns="{space}" uri="vos://a/b"/>' if space else f'<{root} uri="vos://a/b"/>'
    with pytest.raises(InvalidArgument):
        (xml.parse_node if root == "node" else xml.parse_transfer)(body.encode())


def test_another_root_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        xml.parse_transfer(document())
    with pytest.raises(InvalidArgument):
        xml.parse_node(f'<transfer xmlns="{NS}"/>'.encode())


def test_a_node_needs_a_uri() -> None:
    for attributes in ("", 'uri=""', 'vos:uri="vos://a/b"'):
        with pytest.raises(InvalidURI):
            xml.parse_node(document(attributes=attributes))


@pytest.mark.parametrize(
    "kind", ["vos:FolderNode", "DataNode", "xsi:DataNode", "none:DataNode", "vos:", "vos:vos:DataNode"]
)
def test_an_unknown_type_is_refused(kind: str) -> None:
    with pytest.raises(TypeNotSupported):
        xml.parse_node(document(attributes=f'uri="vos://a/b" xsi:type="{kind}"'))


@pytest.mark.parametrize(
    ("uri", "value"),
    [
        ("", "v"), ("urn:a b", "v"), ("urn:a\n", "v"), ("u" * 1025, "v"), ("urn:a", "\x01"), ("urn:a", "\ufffe"),
        ("urn:a", "\ud800"), ("urn:a", "\0"), ("urn:\ufffe", "v"), ("urn:\uffff", "v"), ("urn:\ud800", "v"),
    ],
)  # fmt: skip
def test_what_xml_cannot_carry_is_no_property(uri: str, value: str) -> None:
    with pytest.raises(InvalidArgument):
        xml.check_property(uri, value)


# -- what is read ----------------------------------------------------------------------------------------------------


def test_a_node() -> None:
    found = xml.parse_node(
        document(
            properties(
                '<vos:property uri="urn:a" readOnly="false">one &amp; <![CDATA[<two>]]><!-- no --></vos:property>',
                '<vos:property uri="urn:b" xsi:nil="true"/>', '<vos:property uri="urn:c" xsi:nil=" 0 "/>',
                '<other uri="urn:d">x</other>',
            )
            + "<vos:target> vos://a/c </vos:target>",
            'uri="vos://a/b" xsi:type="vos:LinkNode"',
        )
    )  # fmt: skip
    assert (found.uri, found.type, found.target) == ("vos://a/b", "LinkNode", "vos://a/c")
    assert found.properties == {"urn:a": "one & <two>", "urn:b": None, "urn:c": ""}


def test_nil_must_be_a_boolean() -> None:
    with pytest.raises(InvalidArgument):
        xml.parse_node(document(properties('<vos:property uri="urn:b" xsi:nil="maybe"/>')))


def test_prefixes_are_of_the_client_s_choice() -> None:
    for prefix, kind in (("v:", "v:ContainerNode"), ("", "ContainerNode")):
        space = f'xmlns{":v" if prefix else ""}="{NS}"'
        attributes = f'{space} xmlns:i="{XSI}" uri="vos://a/b" i:type="{kind}"'
        body = f"<{prefix}node {attributes}><{prefix}properties/></{prefix}node>"
        assert xml.parse_node(body.encode()).type == "ContainerNode"
    assert xml.parse_node(f'<node xmlns="{NS}" uri="vos://a/b"/>'.encode()).type == "Node"


def test_a_transfer() -> None:
    body = (
        f'<t:transfer xmlns:t="{NS}"><t:target> vos://a/b </t:target><t:direction>pushToVoSpace</t:direction>'
        '<t:view uri="urn:v"/><t:protocol uri="urn:p"><t:endpoint> http://x/ </t:endpoint>'
        '<t:securityMethod uri="urn:s"/></t:protocol><t:protocol uri="urn:q"/><t:keepBytes>false</t:keepBytes>'
        '<t:param uri="urn:n">7</t:param></t:transfer>'
    )
    found = xml.parse_transfer(body.encode())
    assert (found.target, found.direction, found.view, found.keep_bytes) == (
        "vos://a/b",
        "pushToVoSpace",
        "urn:v",
        False,
    )
    assert [(p.uri, p.endpoint, p.security_methods) for p in found.protocols] == [
        ("urn:p", "http://x/", ["urn:s"]), ("urn:q", "", []),
    ]  # fmt: skip
    assert found.params == {"urn:n": "7"}
    assert xml.parse_transfer(f'<transfer xmlns="{NS}"/>'.encode()) == xml.Transfer("", "")
    with pytest.raises(InvalidArgument):
        xml.parse_transfer(body.replace("false", "perhaps").encode())


# -- what is written -------------------------------------------------------------------------------------------------


def written(node: Node, uri: str, given: dict[str, str], detail: str = "max") -> bytes:
    return (xml.node_open(node, uri, detail, True) + xml.node_inner(node, given, detail) + "</vos:node>").encode()


@given(st.dictionaries(CLEAN.map(lambda t: "urn:" + "".join(t.split())), CLEAN, max_size=4), CLEAN)
@settings(deadline=None)
def test_what_we_write_is_read_back(given: dict[str, str], owner: str) -> None:
    node = msgspec.structs.replace(NODE, owner=owner)
    found = xml.parse_node(written(node, "vos://a/b'%20", given))
    assert found.uri == "vos://a/b'%20" and found.type == "DataNode"
    assert {uri: value for uri, value in found.properties.items() if uri.startswith("urn:")} == given
    assert found.properties[CORE + "creator"] == owner
    assert found.properties[CORE + "length"] == "42"
    assert found.properties[CORE + "date"] == "2020-09-13T12:26:40.123"
    assert found.properties[CORE + "groupread"] == "g&1"


@pytest.mark.parametrize("text", ['a"b<c>&d', "line\nfeed\ttab\rreturn", "]]>", "<!DOCTYPE", "&#0;", "é\U0001f52d"])
def test_escaped_text_is_read_back(text: str) -> None:
    root = etree.fromstring(f"<a>{xml.escape(text)}</a>".encode())
    assert root.text == text
    if not set(text) & set("\n\t"):
        assert etree.fromstring(f'<a b="{xml.escape(text)}"/>'.encode()).get("b") == text


@pytest.mark.parametrize("detail", ["min", "properties", "max"])
@pytest.mark.parametrize("kind", [CONTAINER, DATA, LINK])
def test_children_in_every_detail(kind: str, detail: str) -> None:
    node = msgspec.structs.replace(NODE, kind=kind)
    inner = xml.child(node, "vos://a/b&c", "vos://a/<t>", {"urn:x": "<y>"}, detail)
    root = etree.fromstring(f'<r xmlns:vos="{NS}" xmlns:xsi="{XSI}">{inner}</r>'.encode())[0]
    assert root.get("uri") == "vos://a/b&c" and root.get(f"{{{XSI}}}type") == xml.TYPE_OF[kind]
    tags = [etree.QName(element).localname for element in root]
    assert ("properties" in tags) == (detail != "min")
    assert ("nodes" in tags) == (kind == CONTAINER)
    assert root.findtext(f"{{{NS}}}target") == ("vos://a/<t>" if kind == LINK else None)


def test_transfer_details_are_read_back() -> None:
    transfer = xml.Transfer("vos://a/<b>", "pullFromVoSpace", "urn:v", params={"urn:p": "a&b"})
    body = xml.transfer_details(transfer, [("urn:http", "", "http://x/?a&b"), ("urn:https", "urn:s", "https://x/")])
    found = xml.parse_transfer(body)
    assert (found.target, found.direction, found.view, found.params) == (
        "vos://a/<b>", "pullFromVoSpace", "urn:v", {"urn:p": "a&b"},
    )  # fmt: skip
    assert [(p.uri, p.endpoint, p.security_methods) for p in found.protocols] == [
        ("urn:http", "http://x/?a&b", []), ("urn:https", "https://x/", ["urn:s"]),
    ]  # fmt: skip
    assert xml.fragment(body).startswith("<vos:transfer ")


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000"), (1, "1970-01-01T00:00:00.000"), (999_999_999, "1970-01-01T00:00:00.999"),
        (-1, "1969-12-31T23:59:59.999"), (951_782_400 * 10**9, "2000-02-29T00:00:00.000"),
    ],
)  # fmt: skip
def test_timestamp(ns: int, text: str) -> None:
    assert xml.timestamp(ns) == text


@pytest.mark.parametrize("ns", [2**63 - 1, -(2**63), 10**30])
def test_a_timestamp_out_of_range_is_still_one(ns: int) -> None:
    assert len(xml.timestamp(ns)) == 23
