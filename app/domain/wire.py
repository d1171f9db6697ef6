"""Events in the form in which clients send them."""

from typing import Any

from app.domain.events import OTHER, Event, PageView, actual_name


def as_sent(event: Event, event_id: str | None) -> dict[str, Any]:
    """An event as a client would send it, with this id, and its user as it is kept.

    `Invalid` says why it counted apart. `Other` says what counted under OTHER, its `website`,
    `page` or `ad`; what it is really of is sent, so that whoever reads it can decide anew.
    """
    kind, website, name = actual_name(event)
    sent: dict[str, Any] = {"Type": type(event).__name__}
    if event.actual:
        sent["Other"] = "website" if event.website == OTHER else kind
    # The host of https://site1.com:80 is site1.com:80; http would take the port for its own.
    scheme = "https" if website.endswith(":80") else "http"
    sent["Url"] = f"{scheme}://{website}{name if kind == 'page' else '/'}"
    sent["EventId"] = event_id
    if not isinstance(event, PageView):
        sent["Meta"] = {"UserId": event.user_id, "AdId": name}
    if event.time is not None:
        sent["Timestamp"] = event.time
    if event.invalid:
        sent["Invalid"] = event.invalid.reason
    return sent
