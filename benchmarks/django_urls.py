"""The URLs of the Django sites; Django finds them by the name of this module."""

from __future__ import annotations

from importlib import import_module

from benchmarks.frameworks import PATHS, django_view

urlpatterns = [import_module("django.urls").path(path[1:], django_view) for path in PATHS]
