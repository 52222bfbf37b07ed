"""Reports, Data Docs, a model's version and the pages of the servers lead to each other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from assets.expectations import SUITES
from assets.modelling import annotate, links_of
from assets.quality import validate
from market.pages import DATA_DOCS, REPORTS, Pages
from market.settings import Settings
from models_registry.store import model_version, registry_client
from orchestration import report_page
from orchestration.dashboard.command import PAGES, _file
from tests.assets.test_quality import rows_of
from tests.orchestration.browser import CHROMIUM, browser
from tests.orchestration.parsed_page import ParsedPage
from tests.orchestration.test_dashboard import page as served


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a lake with two reports and Data Docs."""
    docs = tmp_path / DATA_DOCS / "index.html"
    docs.parent.mkdir(parents=True)
    docs.write_text("<title>Data Docs</title>")
    settings = Settings(root=str(tmp_path))
    reported(settings)
    return settings


def reported(settings: Settings) -> None:
    for name, title in (("tca", "Cost <of> execution"), ("study", "What execution costs")):
        page = Path(str(report_page.place(settings, "", name)))
        page.write_text(report_page.document(title, [f"<h1>{name}</h1>"]))
        report_page.publish(page, settings)


def test_every_link_of_a_report_and_of_their_list_resolves(settings: Settings) -> None:
    folder = Path(settings.root) / REPORTS
    servers = {settings.pages.dagster, settings.pages.mlflow, settings.pages.dashboard}
    for page in (*folder.glob("*.html"),):
        parsed = ParsedPage(page.read_text())
        assert parsed.fetched == [], "nothing is loaded from anywhere"
        assert {f"http://{urlsplit(u).netloc}" for u in parsed.links if "://" in u} == servers
        files = [link for link in parsed.links if "://" not in link]
        assert len(files) == (3 if page.name == "index.html" else 2)
        for link in files:
            assert (page.parent / link).is_file(), link
    index = (folder / "index.html").read_text()
    assert "Cost &lt;of&gt; execution" in index


def test_the_page_hands_out_what_the_other_pages_lead_to(settings: Settings) -> None:
    root = Path(settings.root)
    app = Starlette(routes=[Route("/files/{path:path}", lambda request: _file(root, request))])

    async def get(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get(path)

    for url in links_of(settings.pages, "a1").values():
        if "/files/" in url:
            answer = asyncio.run(get(urlsplit(url).path))
            assert answer.status_code == 200, url
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert asyncio.run(get("/files/l2.toml")).status_code == 404


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Great Expectations
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_a_browser_gets_from_the_page_to_reports_and_data_docs_and_back(tmp_path: Path) -> None:
    with served(tmp_path) as address, browser() as tab:
        settings = Settings(root=str(tmp_path), pages=Pages(dashboard=address.rstrip("/")))
        to, bounds = settings.pages, SUITES["bars"]
        links = {"reports": to.file(f"{REPORTS}/index.html"), "Dagster": to.asset("bars")}
        validate(
            {"2026-01-01 BTCUSDT": rows_of(bounds)}, "bars", bounds, tmp_path / "quality", links
        )
        reported(settings)
        todo, seen, others = [f"{address}system"], set[str](), set[str]()
        while todo:
            seen.add(url := todo.pop())
            tab.run("window.before = true")
            tab.open(url)
            tab.until(
                "!window.before && document.readyState === 'complete' && document.links.length"
            )
            status = "performance.getEntriesByType('navigation')[0].responseStatus"
            assert tab.run(status) == 200, url
            for link in tab.run("[...document.links].map(a => a.href.split('#')[0])"):
                if not link.startswith(address):
                    others.add(urlsplit(link).netloc)
                elif link not in seen and link not in todo:
                    todo.append(link)
        files = {unquote(url).partition("/files/")[2] for url in seen}
        docs = {name.removeprefix(f"{DATA_DOCS}/") for name in files if name.startswith(DATA_DOCS)}
        assert files >= {f"{REPORTS}/{name}.html" for name in ("index", "tca", "study")}
        assert {name.partition("/")[0] for name in docs} == {
            "index.html",
            "validations",
            "expectations",
        }
        assert seen >= {f"{address}{name}" for name in PAGES}
        assert others == {urlsplit(to.dagster).netloc, urlsplit(to.mlflow).netloc}
        assert tab.errors == []
        assert tab.hosts == {urlsplit(address).netloc}


def test_a_version_of_a_model_leads_to_its_run_and_the_reports(settings: Settings) -> None:
    name = settings.model_name
    with registry_client(settings) as client:
        client.create_registered_model(name)
        client.create_model_version(name, "file:///none", description="IC 0.1")
    annotate(settings, "1", links_of(settings.pages, "a1"))
    with registry_client(settings) as client:
        told = model_version(client, name, "1").description
    assert told.startswith("IC 0.1\n\n[Dagster run](http://127.0.0.1:3000/runs/a1) · [reports](")
    for url in links_of(settings.pages, "a1").values():
        assert f"]({url})" in told


@pytest.mark.parametrize(
    ("given", "goes_to"), [(None, None), ("x/y.html", "x/y.html"), ("", f"{REPORTS}/tca.html")]
)
def test_a_page_without_a_file_goes_to_the_lakes_reports(
    tmp_path: Path, given: str | None, goes_to: str | None
) -> None:
    found = report_page.place(Settings(root=str(tmp_path)), given, "tca")
    assert found == (str(tmp_path / str(goes_to)) if given == "" else goes_to)


def test_files_that_are_no_pages_of_ours_do_not_end_the_list(settings: Settings) -> None:
    folder = Path(settings.root) / REPORTS
    (folder / "theirs.html").write_bytes(b"<title>caf\xe9</title>")
    (folder / "folder.html").mkdir()
    (folder / "gone.html").symlink_to("nowhere")
    report_page.write_index(settings)
    index = (folder / "index.html").read_text(encoding="utf-8")
    assert '<a href="theirs.html">caf\ufffd</a>' in index
    assert "folder.html" not in index
    assert "gone.html" not in index


def test_a_report_of_a_lake_in_a_bucket_goes_to_this_machines_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("L2_HOME", str(tmp_path / "machine"))
    settings = Settings(root="s3://books/lake")
    page = Path(str(report_page.place(settings, "", "tca")))
    page.write_text(report_page.document("Costs", ["<h1>tca</h1>"]))
    report_page.publish(page, settings)
    assert page.parent == tmp_path / "machine" / "books" / "lake" / REPORTS
    assert 'href="tca.html"' in (page.parent / "index.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["machine"]
