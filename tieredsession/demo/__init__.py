"""The demo: one page that shows a session at work, on any of three stores."""
