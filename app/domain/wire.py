"""Events in the form in which clients send them."""

from typing import Any

from app.domain.events import OTHER, AdImpression, Event, PageView, actual_name


def as_sent(event: Event, event_id: str | None) -> dict[str, Any]:
    """An event as a client would send it, with this id. User ids stay as they are kept.

    `Invalid` is the reason why the event counted separately. `Other` says which name counted under
    OTHER (`website`, `page` or `ad`). The event has its actual names, so its reader can decide
    again.
    """
    kind, website, name = actual_name(event)
    sent: dict[str, Any] = {"Type": type(event).__name__}
    if event.actual:
        sent["Other"] = "website" if event.website == OTHER else kind
    # The website of https://site1.com:80 is site1.com:80. With http, the port would be dropped.
    scheme = "https" if website.endswith(":80") else "http"
    sent["Url"] = f"{scheme}://{website}{name if kind == 'page' else '/'}"
    sent["EventId"] = event_id
    if not isinstance(event, PageView):
        sent["Meta"] = {"UserId": event.user_id, "AdId": name}
    if isinstance(event, AdImpression) and event.viewable is not None:
        sent["Meta"]["Viewable"] = event.viewable
    if event.time is not None:
        sent["Timestamp"] = event.time
    if event.invalid:
        sent["Invalid"] = event.invalid.reason
    return sent
