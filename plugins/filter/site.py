"""Filters that group services into nginx sites and lay out their files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

#: What a string in nginx's single quotes would take for something else, and the project for a place to fill in.
ESCAPED = {ord(one): f"\\u{ord(one):04x}" for one in "'$@"}


def site_list(services: Iterable[Mapping[str, Any]], upstreams: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One site for each port, named after its first service."""
    upstreams = list(upstreams)
    sites: dict[int, dict[str, Any]] = {}
    for service in services:
        site = sites.setdefault(service["port"], {"name": service["name"], "port": service["port"], "services": []})
        site["services"].append(service)
    for site in sites.values():
        names = {service["name"] for service in site["services"]}
        site["upstreams"] = [one for one in upstreams if one["service"] in names]
    return list(sites.values())


def site_described(services: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Paths of the descriptions of a site's services, by name; an app of somebody's own describes nothing."""
    names = [one["name"] for one in services if one["module"] == "inference.wsgi" and not one["wsgi_file"]]
    paths = {name: [f"/openapi/{name}.json"] for name in names}
    if names:
        paths[names[0]].append("/openapi.json")
    return paths


def nginx_files(main: str, sites: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Files below ``/etc/nginx``: the main one, then the site and the upstreams of each site."""
    files = [{"path": "nginx.conf", "content": main}]
    for site in sites:
        files.append({"path": f"upstreams/{site['name']}.conf", "content": site["upstream"]})
        files.append({"path": f"sites-available/{site['name']}.conf", "content": site["site"]})
    return files


def nginx_links(sites: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Links that enable the sites; relative, so that they also hold in a copy of the folder."""
    return [
        {"path": f"sites-enabled/{site['name']}.conf", "target": f"../sites-available/{site['name']}.conf"}
        for site in sites
    ]


def site_services(services: Iterable[Mapping[str, Any]]) -> str:
    """What the page has to know of each service of a site, as JSON that stands in single quotes of an nginx configuration."""
    listed = [
        {
            "name": service["name"],
            "route": service["route"],
            "model": service["model"],
            # The built-in OCR takes nothing but images.
            "input": "image" if service["model"] == "inference.models.ocr:OcrModel" else "any",
            "max_body_mib": int(service["max_body_mib"]),
        }
        for service in services
    ]
    # nginx reads a backslash as the start of something, too.
    return json.dumps(listed).translate(ESCAPED).replace("\\", "\\\\")


class FilterModule:
    """Filters of the roles site and nginx."""

    def filters(self) -> dict[str, Any]:
        """Names that templates use."""
        return {
            "site_list": site_list,
            "site_described": site_described,
            "site_services": site_services,
            "nginx_files": nginx_files,
            "nginx_links": nginx_links,
        }
