"""Which model describes the parameters of which notebook."""

from risf_core import distilled_rescoring_params, open_vocabulary_params, params, study_params

MODELS: dict[str, type[params.NotebookParams]] = {
    model.notebook: model
    for module in (params, study_params, open_vocabulary_params, distilled_rescoring_params)
    for model in vars(module).values()
    if isinstance(model, type) and issubclass(model, params.NotebookParams) and "notebook" in vars(model)
}
