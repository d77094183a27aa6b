"""Takes the pictures of the page for the documents: `.venv/bin/python -IB tests/page_pictures.py`."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import rendering
import tree
from page_site import GIB, IMAGES, Site, StandIn, Tab, browsing, device, problem, recorded, status
from processes import wait_for
from stack import Fleet, Roles

PICTURES = tree.ROOT / "docs" / "images"
INVOICE = IMAGES / "invoice.png"


def save(tab: Tab, name: str, whole: bool = True) -> None:
    path = PICTURES / f"page-{name}.png"
    path.write_bytes(tab.picture(whole))
    print(f"{path.relative_to(tree.ROOT)}: {path.stat().st_size // 1024} kB")


def shown(tab: Tab) -> None:
    """Wait until the answer stands there with its image."""
    tab.wait("#result")
    wait_for(lambda: tab.run("return document.getElementById('image').complete"), "the image")


def take(tab: Tab, site: Site) -> None:
    alone = site.url(port=site.ocr_port)
    answer = recorded("invoice")
    site.app.answer(answer)
    site.app.reply.after = answer["timing_ms"]["total"] / 1000
    for scheme in ("light", "dark"):
        tab.scheme(scheme)
        tab.size(1240, 700, scale=1)
        tab.open(alone)
        tab.wait("#example")
        if scheme == "light":
            save(tab, "idle")
        tab.send(INVOICE)
        shown(tab)
        tab.run("document.activeElement.blur()")
        save(tab, "result" if scheme == "light" else "dark")
    tab.scheme("light")
    tab.size(1240, 500, scale=1)
    detail = "64 requests wait for the device, which is as many as it takes."
    site.app.reply = problem(503, "busy", "Busy", detail, **{"Retry-After": "4"})
    tab.open(alone)
    tab.send(INVOICE)
    tab.wait("#problem")
    save(tab, "error")
    site.app.answer(recorded("invoice"))
    tab.size(390, 844, scale=1.5, phone=True)
    tab.open(alone)
    tab.send(INVOICE)
    shown(tab)
    tab.find("label[for=over-text]").click()
    save(tab, "phone", whole=False)
    tab.size(1240, 560, scale=1)
    out = {"by": "fleet-watch", "why": "2 uncorrected ECC errors in an hour", "at": "2026-11-25T09:19:15Z"}
    busy = {"busy": 3, "queue": 11, "in_flight": 14, "rejected": 3}
    second = device("gpu1", busy=4, queue=58, in_flight=62, utilization=0.97, temperature=74, requests=20418)
    third = device("gpu2", in_rotation=False, out=out, utilization=0, temperature=38, requests=7031)
    third["memory"]["used_bytes"] = GIB
    for requests in (18210, 18254, 18297):
        site.app.tell(status(device("gpu0", requests=requests, **busy), second, third, host="gpu-host-1"))
        second["services"][0]["requests"] += 51
        if requests == 18210:
            tab.open(site.url("/status"))
        tab.wait(".device:first-child .counts", f"{requests:,}")
    save(tab, "status")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        # The workers of nginx may be another user.
        Path(folder).chmod(0o755)
        site = Site(Fleet(Path(folder), Roles(rendering.variables, rendering.render)), StandIn())
        with site.serving(inventory_hostname="gpu-host-1"), browsing() as tab:
            take(tab, site)


if __name__ == "__main__":
    main()
