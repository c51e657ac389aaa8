"""The HTTP gateway. It never imports torch."""
