"""Events in the form in which clients send them."""

from typing import Any

from app.domain.events import Event, PageView


def as_sent(event: Event, event_id: str | None) -> dict[str, Any]:
    """An event as a client would send it, with this id, its user as it is kept.

    `Invalid` says why it counted apart, if it did.
    """
    # The host of https://site1.com:80 is site1.com:80; http would take the port for its own.
    scheme = "https" if event.website.endswith(":80") else "http"
    page = event.page if isinstance(event, PageView) else "/"
    sent: dict[str, Any] = {
        "Type": type(event).__name__,
        "Url": f"{scheme}://{event.website}{page}",
        "EventId": event_id,
    }
    if not isinstance(event, PageView):
        sent["Meta"] = {"UserId": event.user_id, "AdId": event.ad_id}
    if event.time is not None:
        sent["Timestamp"] = event.time
    if event.invalid:
        sent["Invalid"] = event.invalid.reason
    return sent
