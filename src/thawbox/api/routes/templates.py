"""Templates: a spec and its golden snapshot, which pools and clones are made from."""

from __future__ import annotations

from fastapi import APIRouter, Request

from thawbox import shapes, views
from thawbox.api import shown
from thawbox.api.access import Admin, Reader
from thawbox.api.answers import Answer, Body, Carried, Pages, Reference, carry_out, resource
from thawbox.api.operations import PATIENCE, Progress
from thawbox.api.routes.sandboxes import GivenSpec
from thawbox.api.service import Service


class Create(Body):
    name: str
    spec: GivenSpec


def router(service: Service) -> APIRouter:
    routes = resource("/v1/templates", "templates")

    @routes.post("", status_code=201)
    async def create_template(wish: Create, request: Request, caller: Admin) -> Carried[shapes.Template]:
        """Boot a spec until it is ready and keep it as a template."""

        def act(progress: Progress) -> shapes.Template:
            progress.check()
            try:
                return views.template_whole(service.node.create_template(wish.name, wish.spec, check=progress.check))
            finally:
                service.watch.look()

        return await carry_out(service, request, caller, "template.create", act, lane=PATIENCE, status=201)

    @routes.get("")
    def list_templates(page: Pages, _: Reader) -> Answer[shown.TemplatePage]:
        """Every template, by name."""
        templates, more = page.of(service.node.templates(), lambda one: (one.name, ""))
        return Answer({"templates": [views.template_brief(one) for one in templates], "next": more})

    @routes.get("/{name}")
    def show_template(name: Reference, _: Reader) -> Answer[shapes.Template]:
        """A template with its spec."""
        return Answer(views.template_whole(service.node.template(name)))

    @routes.delete("/{name}", status_code=204)
    def remove_template(name: Reference, _: Admin) -> None:
        """Remove a template that no pool is made from, and its snapshot. Its clones live on."""
        service.node.remove_template(name)
        service.watch.look()

    @routes.post("/{name}/rebuild")
    async def rebuild_template(name: Reference, request: Request, caller: Admin) -> Carried[shapes.Template]:
        """Boot a template's spec anew; pools replace what they have parked. The old one stays when this fails."""

        def act(progress: Progress) -> shapes.Template:
            progress.check()
            try:
                return views.template_whole(service.node.rebuild_template(name, check=progress.check))
            finally:
                service.watch.look()

        return await carry_out(service, request, caller, "template.rebuild", act, lane=PATIENCE)

    return routes
