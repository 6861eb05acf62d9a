"""The schema, its loading and the plan arithmetic. No torch anywhere below."""
