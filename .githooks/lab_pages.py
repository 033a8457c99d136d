"""For `make lab`: hands out notebooks with the name and the Python of the kernel that will run them. nbdev-clean
stores neither, so JupyterLab would add them, mark every chapter as changed, and ask to save it on closing."""
from ipykernel.ipkernel import IPythonKernel
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

KERNEL = 'python3'


class Pages(AsyncLargeFileManager):
    "The files of the project as JupyterLab reads them"
    async def get(self, path, content=True, **kinds):
        model = await super().get(path, content, **kinds)
        if model['type'] == 'notebook' and content:
            page = model['content']['metadata']
            if page.get('kernelspec', {}).get('name') == KERNEL:
                spec = self.parent.kernel_spec_manager.get_kernel_spec(KERNEL)
                page['kernelspec'] = {'name': KERNEL, 'display_name': spec.display_name, 'language': spec.language}
                page['language_info'] = dict(IPythonKernel.language_info)
        return model
